-- Questions to any Postgres server, whatever the mapping.

-- name: Relations :many
-- The mapping's tables as the plugin will name them (a partitioned table by its leaves), with the columns that each one's
-- replica identity carries, and a shape that changes with anything about the table that sends no rows.
WITH RECURSIVE tree (mapped, relid) AS (
    SELECT c.relname, c.oid
    FROM pg_class c
    JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = @schema AND c.relname = ANY (@tables) AND c.relkind IN ('r', 'p')
    UNION ALL
    SELECT tree.mapped, i.inhrelid
    FROM tree
    JOIN pg_inherits i ON i.inhparent = tree.relid
)
SELECT
    tree.mapped::text AS mapped,
    n.nspname::text AS schema_name,
    c.relname::text AS table_name,
    c.relreplident::text AS identity_kind,
    ARRAY(
        SELECT a.attname::text
        FROM pg_attribute a
        WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
            AND CASE c.relreplident
                WHEN 'f' THEN true
                WHEN 'n' THEN false
                ELSE EXISTS (
                    SELECT FROM pg_index i
                    WHERE i.indrelid = c.oid AND a.attnum = ANY (i.indkey)
                        AND CASE c.relreplident WHEN 'd' THEN i.indisprimary ELSE i.indisreplident END
                )
            END
        ORDER BY a.attnum
    ) AS identity_columns,
    concat_ws(' ', c.oid, c.relfilenode, c.relkind, c.relreplident, c.relrowsecurity, (
        SELECT string_agg(concat_ws(':', a.attnum, a.attname, a.atttypid, a.atttypmod, a.attisdropped), ',' ORDER BY a.attnum)
        FROM pg_attribute a
        WHERE a.attrelid = c.oid AND a.attnum > 0
    )) AS shape
FROM tree
JOIN pg_class c ON c.oid = tree.relid
JOIN pg_namespace n ON n.oid = c.relnamespace
ORDER BY 1, 2, 3;

-- name: Slot :many
-- Our slot, if it is there.
SELECT
    plugin::text,
    slot_type,
    database::text,
    active_pid,
    wal_status,
    confirmed_flush_lsn::text,
    safe_wal_size,
    age(catalog_xmin) AS catalog_xmin_age,
    pg_wal_lsn_diff(
        CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END, restart_lsn
    )::bigint AS retained
FROM pg_replication_slots
WHERE slot_name = @slot;

-- name: WalEnd :many
-- How far a stream of this server can get now: what is flushed on a primary, what is replayed on a standby.
SELECT (CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_flush_lsn() END)::text;

-- name: OldestTransactions :many
-- Whom the creation of a slot waits for: transactions that are running or prepared, oldest first.
SELECT concat('process ', pid, ' (', usename, ', ', state, ', since ', xact_start::timestamptz(0), ')')
FROM pg_stat_activity
WHERE backend_xid IS NOT NULL AND pid <> pg_backend_pid()
UNION ALL
SELECT concat('prepared transaction ', quote_literal(gid), ' (', owner, ', since ', prepared::timestamptz(0), ')')
FROM pg_prepared_xacts
LIMIT 5;

-- name: SoftDeleted :many
-- The mapping's tables that mark rows as deleted: a mapping that ignores the mark would authorize them for ever.
SELECT c.relname::text
FROM pg_class c
JOIN pg_namespace n ON n.oid = c.relnamespace
JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = 'deleted' AND NOT a.attisdropped
WHERE n.nspname = @schema AND c.relname = ANY (@tables);

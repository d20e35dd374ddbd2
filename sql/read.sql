-- The queries with which a read of any mapping begins.

-- name: Header :many
-- The evidence of a read, from the same statement and so from the same snapshot: the snapshot; four ends of the WAL after it was
-- taken (what is written; what is flushed and so can be decoded; a bound of everything visible; and the nearest such bound);
-- and what the session knew of the server before that. A server that was promoted in between proves nothing.
-- A standby shows a commit a moment before it reports it as replayed. Only the next record can be such a commit, so the nearest
-- bound is one byte beyond the replay position, unless everything received is replayed or replay is paused. Each of these
-- conditions is evaluated before the position that it leaves as it is. A primary shows a commit before it is flushed if
-- synchronous_commit is off, and flushes it within three times wal_writer_delay: the last number, in seconds.
-- NULLs stand for the mapping's columns. This row comes first because an Append runs its parts in order, unless it is
-- parallel. The condition is always true; it prevents a parallel plan, because it calls a function that only the leader of a
-- parallel query may call.
SELECT
    CASE
        WHEN coalesce(pg_is_in_recovery() = (split_part(current_setting('pads_cdc.before', true), ' ', 2) = '-'), true)
        THEN pg_current_snapshot()::TEXT
    END AS snapshot,
    CASE
        WHEN pg_is_in_recovery()
            THEN concat_ws(
                ' ',
                pg_last_wal_replay_lsn(),
                pg_last_wal_replay_lsn(),
                greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn()),
                CASE
                    WHEN pg_last_wal_receive_lsn() > pg_last_wal_replay_lsn() AND pg_get_wal_replay_pause_state() <> 'paused'
                        THEN pg_last_wal_replay_lsn() + 1::numeric
                    ELSE pg_last_wal_replay_lsn()
                END
            )
        ELSE
            concat_ws(
                ' ',
                pg_current_wal_insert_lsn(),
                pg_current_wal_flush_lsn(),
                pg_current_wal_insert_lsn(),
                pg_current_wal_insert_lsn(),
                3 * extract(EPOCH FROM current_setting('wal_writer_delay')::INTERVAL)
            )
    END AS seen,
    current_setting('pads_cdc.before', true) AS before,
    NULL AS found,
    NULL AS endpoint_id,
    NULL AS secret_key,
    NULL AS secret_key_required,
    NULL AS authorized_users,
    NULL AS account_id,
    NULL AS plan_type,
    NULL AS throughput_limit,
    NULL AS capacity_limit
WHERE pg_backend_pid() IS NOT NULL;

-- name: WaitForLocks :many
-- Waits for the lock of each table, partition and index of a mapping, one after the other. pg_relation_size takes the lock of one
-- relation and releases it, so no lock of a table is held while another one is waited for. It needs no privilege.
WITH RECURSIVE tables AS (
    SELECT c.oid
    FROM pg_class c
    JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = @schema AND c.relname = ANY (@tables::text[])
    UNION
    SELECT i.inhrelid
    FROM pg_inherits i
    JOIN tables ON tables.oid = i.inhparent
),
relations AS (
    SELECT tables.oid FROM tables
    UNION ALL
    SELECT i.indexrelid
    FROM pg_index i
    JOIN tables ON tables.oid = i.indrelid
)
SELECT count(pg_relation_size(relations.oid)) AS locked FROM relations;

-- name: OutsideTypes :many
-- The mapping's columns whose type has operators outside of pg_catalog (citext, for example), and the schema of these operators.
-- If a role other than a superuser or the owners of that schema and of the tables can create an operator there, or has created
-- one: which object allows it, and what to type against it. Enums, ranges, arrays and domains need no operators of their own.
WITH RECURSIVE mapped AS (
    SELECT c.oid, c.relname, c.relowner
    FROM pg_class c
    JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = @schema AND c.relname = ANY (@tables::text[])
),
typed (column_name, type) AS (
    SELECT concat(mapped.relname, '.', a.attname), a.atttypid
    FROM mapped
    JOIN pg_attribute a ON a.attrelid = mapped.oid AND a.attnum > 0 AND NOT a.attisdropped
    WHERE concat(mapped.relname, '.', a.attname) = ANY (@columns::text[])
    UNION ALL
    SELECT typed.column_name, t.typbasetype
    FROM typed
    JOIN pg_type t ON t.oid = typed.type
    WHERE t.typtype = 'd'
)
SELECT
    n.nspname::text AS schema_name,
    typed.column_name,
    t.typname::text AS type_name,
    others.fault,
    others.remedy
FROM typed
JOIN pg_type t ON t.oid = typed.type AND t.typtype = 'b' AND t.typcategory <> 'A'
JOIN pg_namespace n ON n.oid = t.typnamespace AND n.nspname <> 'pg_catalog'
LEFT JOIN LATERAL (
    SELECT found.fault, found.remedy
    FROM (
        SELECT
            1 AS place,
            entry.grantee AS who,
            concat(coalesce(r.rolname, 'PUBLIC'), ' may create others') AS fault,
            format('REVOKE CREATE ON SCHEMA %I FROM %s;', n.nspname, coalesce(quote_ident(r.rolname), 'PUBLIC')) AS remedy
        FROM aclexplode(coalesce(n.nspacl, acldefault('n', n.nspowner))) AS entry
        LEFT JOIN pg_roles r ON r.oid = entry.grantee
        WHERE entry.privilege_type = 'CREATE'
        UNION ALL
        SELECT 2, o.oprowner, concat(r.rolname, ' has made the operator ', o.oprname), format('DROP OPERATOR %s;', o.oid::regoperator)
        FROM pg_operator o
        JOIN pg_roles r ON r.oid = o.oprowner
        WHERE o.oprnamespace = n.oid
        UNION ALL
        SELECT 3, p.proowner, concat(r.rolname, ' has made the function ', p.proname), format('DROP ROUTINE %s;', p.oid::regprocedure)
        FROM pg_proc p
        JOIN pg_roles r ON r.oid = p.proowner
        WHERE p.pronamespace = n.oid
    ) AS found
    WHERE found.who <> n.nspowner
        AND found.who NOT IN (SELECT mapped.relowner FROM mapped)
        AND NOT EXISTS (SELECT FROM pg_roles r WHERE r.oid = found.who AND r.rolsuper)
    ORDER BY found.place, found.fault, found.remedy
    LIMIT 1
) AS others ON true
ORDER BY 1, 2;

-- name: Types :many
-- Types by oid, described as in the query KeyColumns. The collation is that of a value, as pg_collation_for returns it.
SELECT
    t.oid,
    CASE n.nspname
        WHEN 'pg_catalog' THEN format_type(t.oid, CASE t.typname WHEN 'bpchar' THEN coalesce(nullif(@length, -1) + 4, -1) END)
        ELSE format('%I.%I', n.nspname, t.typname)
    END AS type_name,
    t.typcategory::text AS category,
    t.typname NOT IN ('bpchar', 'numeric', 'float4', 'float8', 'interval', 'timetz', 'jsonb', 'citext', 'inet')
        AND t.typcategory NOT IN ('A', 'R', 'C') AND coalesce(k.collisdeterministic, true) AS exact,
    CASE WHEN NOT k.collisdeterministic THEN @collation END AS collation_name
FROM pg_type t
JOIN pg_namespace n ON n.oid = t.typnamespace
LEFT JOIN pg_collation k ON k.oid = to_regcollation(@collation)
WHERE t.oid = ANY (@types::oid[]);

-- Queries for any Postgres server, independent of the mapping. All names are in pg_catalog, the only schema in our sessions'
-- search path. There is no backslash in these queries, because its meaning depends on a setting.

-- name: Relations :many
-- The mapping's tables as the plugin names them (a partitioned table by its leaves), with the columns of each replica identity, and
-- the virtual generated columns, whose values are not in the WAL; a text that changes with every property of the table that sends
-- no rows, and with the names of its enums' values; a text that changes with every property of the publication, if there is one;
-- and the next transaction id. Without tables that our queries do not read: partitions that are being detached (DETACH
-- CONCURRENTLY), and other sessions' temporary tables.
WITH RECURSIVE tree (mapped, relid) AS (
    SELECT c.relname, c.oid
    FROM pg_class c
    JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = @schema AND c.relname = ANY (@tables) AND c.relkind IN ('r', 'p')
        -- Any role that may create objects here could create a missing signal table, and make us recompute endpoints.
        AND (
            c.relname <> ALL (@signals::text[])
            OR c.relowner = n.nspowner
            OR EXISTS (SELECT FROM pg_roles r WHERE r.oid = c.relowner AND r.rolsuper)
            OR EXISTS (
                SELECT FROM pg_class read
                WHERE read.relnamespace = n.oid AND read.relowner = c.relowner
                    AND read.relname = ANY (@tables) AND read.relname <> ALL (@signals::text[])
            )
        )
    UNION ALL
    SELECT tree.mapped, i.inhrelid
    FROM tree
    JOIN pg_inherits i ON i.inhparent = tree.relid AND NOT i.inhdetachpending
    JOIN pg_class part ON part.oid = i.inhrelid AND part.relpersistence <> 't'
)
SELECT
    c.oid,
    tree.mapped::text AS mapped,
    n.nspname::text AS schema_name,
    c.relname::text AS table_name,
    c.relkind = 'p' AS partitioned,
    c.relpersistence = 'p' AND c.relkind IN ('r', 'p') AS logged,
    ARRAY(
        SELECT a.attname::text
        FROM pg_attribute a
        WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
            AND CASE c.relreplident
                WHEN 'f' THEN true
                WHEN 'n' THEN false
                ELSE EXISTS (
                    SELECT FROM pg_index i
                    WHERE i.indrelid = c.oid AND a.attnum = ANY (i.indkey) AND i.indimmediate AND i.indisvalid
                        AND CASE c.relreplident WHEN 'd' THEN i.indisprimary ELSE i.indisreplident END
                )
            END
        ORDER BY a.attnum
    ) AS identity_columns,
    ARRAY(
        SELECT a.attname::text FROM pg_attribute a
        WHERE a.attrelid = c.oid AND a.attgenerated = 'v' AND NOT a.attisdropped
        ORDER BY a.attnum
    ) AS virtual_columns,
    concat_ws(' ', c.oid, c.relfilenode, c.relkind, c.relpersistence, c.relreplident, c.relrowsecurity, (
        SELECT string_agg(
            concat_ws(':', a.attnum, a.attname, a.atttypid, a.atttypmod, a.attcollation, a.attisdropped), ',' ORDER BY a.attnum
        )
        FROM pg_attribute a
        WHERE a.attrelid = c.oid AND a.attnum > 0
    ), (
        -- Another expression changes a virtual column in all rows, and writes none.
        SELECT string_agg(concat_ws(':', a.attnum, md5(pg_get_expr(d.adbin, d.adrelid))), ',' ORDER BY a.attnum)
        FROM pg_attribute a
        JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
        WHERE a.attrelid = c.oid AND a.attgenerated = 'v'
    ), (
        WITH RECURSIVE typed (type) AS (
            SELECT a.atttypid FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0
            UNION
            SELECT part.type
            FROM typed
            JOIN pg_type t ON t.oid = typed.type
            CROSS JOIN LATERAL (VALUES (t.typbasetype), (t.typelem)) AS part (type)
            WHERE part.type <> 0
        )
        SELECT string_agg(concat_ws(':', e.oid, e.enumlabel), ',' ORDER BY e.oid)
        FROM typed
        JOIN pg_enum e ON e.enumtypid = typed.type
    )) AS shape,
    (
        SELECT string_agg(part.version, ' ' ORDER BY part.version)
        FROM (
            SELECT concat_ws(':', oid, xmin) FROM pg_publication WHERE pubname = @publication
            UNION ALL
            SELECT concat_ws(':', rel.oid, rel.xmin)
            FROM pg_publication_rel rel
            JOIN pg_publication ON pg_publication.oid = rel.prpubid AND pubname = @publication
            UNION ALL
            SELECT concat_ws(':', space.oid, space.xmin)
            FROM pg_publication_namespace space
            JOIN pg_publication ON pg_publication.oid = space.pnpubid AND pubname = @publication
        ) AS part (version)
    ) AS published_as,
    (age('3'::xid)::bigint + 3 + 4294967296) % 4294967296 AS next_xid
FROM tree
JOIN pg_class c ON c.oid = tree.relid
JOIN pg_namespace n ON n.oid = c.relnamespace
ORDER BY 2, 3, 4;

-- name: Publication :many
-- The content of a publication, in one row and one snapshot, with its tables in JSON (those among @tables, by oid, or all if that is
-- NULL). `version` changes with every change of the publication. `settled`: every transaction that the slot will still send began
-- after the newest change; this matters because pgoutput uses the catalog as it was when a row was written. `next_xid` is the next
-- transaction id. `refuses`: Postgres refuses every UPDATE and DELETE of such a table.
WITH publication AS MATERIALIZED (
    SELECT *, xmin AS changed FROM pg_publication WHERE pubname = @publication
),
part (oid, changed) AS (
    SELECT oid, changed FROM publication
    UNION ALL
    SELECT rel.oid, rel.xmin FROM pg_publication_rel rel JOIN publication ON rel.prpubid = publication.oid
    UNION ALL
    SELECT space.oid, space.xmin FROM pg_publication_namespace space JOIN publication ON space.pnpubid = publication.oid
),
published AS (
    SELECT
        c.oid,
        format('%I.%I', n.nspname, c.relname) AS name,
        -- Before PostgreSQL 18, the view names generated columns too, though pgoutput sends none of them.
        CASE WHEN current_setting('server_version_num')::int >= 180000 THEN t.attnames::text[] ELSE ARRAY(
            SELECT a.attname::text FROM pg_attribute a
            WHERE a.attrelid = c.oid AND a.attname = ANY (t.attnames) AND a.attgenerated = ''
            ORDER BY a.attnum
        ) END AS columns,
        t.rowfilter IS NOT NULL AS filtered,
        EXISTS (
            SELECT FROM pg_publication_rel rel
            WHERE rel.prpubid = publication.oid AND rel.prrelid = c.oid AND rel.prattrs IS NOT NULL
        ) AS listed
    FROM publication
    JOIN pg_publication_tables t ON t.pubname = publication.pubname
    JOIN pg_namespace n ON n.nspname = t.schemaname
    JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = t.tablename
    WHERE @tables::oid[] IS NULL OR c.oid = ANY (@tables::oid[])
),
refusing AS (
    -- The rule of Postgres' CheckCmdReplicaIdentity, for each table with rows of its own.
    SELECT DISTINCT published.oid
    FROM published
    CROSS JOIN LATERAL (
        SELECT relid FROM pg_partition_tree(published.oid) WHERE isleaf
        UNION
        SELECT oid FROM pg_class WHERE oid = published.oid AND relkind = 'r'
    ) AS leaf
    JOIN pg_class c ON c.oid = leaf.relid
    LEFT JOIN pg_index i ON i.indrelid = c.oid AND i.indimmediate AND i.indisvalid
        AND CASE c.relreplident WHEN 'd' THEN i.indisprimary WHEN 'i' THEN i.indisreplident END
    WHERE CASE
        WHEN c.relreplident = 'f' AND published.listed THEN true
        WHEN c.relreplident <> 'f' AND i.indexrelid IS NULL THEN true
        WHEN published.listed OR current_setting('server_version_num')::int >= 180000 THEN EXISTS (
            SELECT FROM pg_attribute a
            WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attname <> ALL (published.columns)
                AND CASE c.relreplident WHEN 'f' THEN a.attgenerated <> '' ELSE a.attnum = ANY (i.indkey) END
        )
        ELSE false
    END
)
SELECT
    array_remove(ARRAY[
        CASE WHEN pubinsert THEN 'insert' END,
        CASE WHEN pubupdate THEN 'update' END,
        CASE WHEN pubdelete THEN 'delete' END,
        CASE WHEN pubtruncate THEN 'truncate' END
    ], NULL) AS actions,
    puballtables OR EXISTS (SELECT FROM pg_publication_namespace space WHERE space.pnpubid = publication.oid) AS by_itself,
    pubviaroot AS via_root,
    (SELECT string_agg(concat_ws(':', oid, changed), ' ' ORDER BY concat_ws(':', oid, changed)) FROM part) AS version,
    obj_description(publication.oid, 'pg_publication') AS comment,
    coalesce((
        -- A negative age means that the row was frozen long ago.
        SELECT bool_and(age(part.changed) < 0 OR age(part.changed) > age(slots.catalog_xmin))
        FROM part
        CROSS JOIN pg_replication_slots slots
        WHERE slots.slot_name = @slot AND slots.catalog_xmin IS NOT NULL
    ), false) AS settled,
    pg_current_snapshot()::text AS snapshot,
    (age('3'::xid)::bigint + 3 + 4294967296) % 4294967296 AS next_xid,
    (
        SELECT coalesce(json_agg(json_build_array(
            oid::bigint, name, columns, filtered, (pubupdate OR pubdelete) AND oid IN (SELECT oid FROM refusing)
        ) ORDER BY name), '[]')
        FROM published
    ) AS tables,
    ARRAY(SELECT prrelid::bigint FROM pg_publication_rel WHERE prpubid = publication.oid) AS members
FROM publication;

-- name: Restrictions :many
-- The publications, ours and others, that send updates or deletes of these tables (by oid), directly or through the table of which
-- they are a partition. Postgres refuses every such UPDATE while the table has no replica identity, while the column list (NULL if
-- there is none) lacks a column of the identity, or while the row filter has a column that is not in the identity.
SELECT
    given.oid::bigint AS oid,
    pub.pubname::text AS publication,
    CASE WHEN rel.prattrs IS NOT NULL THEN ARRAY(
        SELECT a.attname::text FROM pg_attribute a
        WHERE a.attrelid = rel.prrelid AND a.attnum = ANY (rel.prattrs)
        ORDER BY a.attnum
    ) END AS columns,
    rel.prqual IS NOT NULL AS filtered
FROM unnest(@tables::oid[]) AS given (oid)
CROSS JOIN LATERAL (
    SELECT given.oid AS relid
    UNION
    SELECT relid FROM pg_partition_ancestors(given.oid)
) AS named
JOIN pg_class c ON c.oid = named.relid
CROSS JOIN pg_publication pub
LEFT JOIN pg_publication_rel rel ON rel.prpubid = pub.oid AND rel.prrelid = c.oid
LEFT JOIN pg_publication_namespace space ON space.pnpubid = pub.oid AND space.pnnspid = c.relnamespace
WHERE (pub.pubupdate OR pub.pubdelete) AND (rel.oid IS NOT NULL OR space.oid IS NOT NULL OR pub.puballtables)
ORDER BY 1, 2;

-- name: Holder :many
-- The owner of a backend, as far as we may see it.
SELECT concat_ws(', ',
    'application ' || quote_literal(nullif(application_name, '')), 'role ' || usename, 'from ' || host(client_addr)
)::text AS holder
FROM pg_stat_activity
WHERE pid = @pid;

-- name: Sender :many
-- Our wal sender: its process, our application_name, and the setting by which Postgres may choose a wal sender of that name as a
-- synchronous standby. A standby never chooses one.
SELECT
    pg_backend_pid() AS pid,
    current_setting('application_name') AS application,
    CASE WHEN pg_is_in_recovery() THEN '' ELSE current_setting('synchronous_standby_names') END AS synchronous_names;

-- name: AtWork :many
-- Whether a process is working, rather than waiting for its client or for new WAL; no row if it has ended.
SELECT coalesce(wait_event_type NOT IN ('Activity', 'Client'), true)
FROM pg_stat_activity
WHERE pid = @pid;

-- name: Blocked :many
-- Whether a session has waited for so many seconds for the end of our transaction, in order to change a table (all other sessions
-- queue behind it) or to build an index concurrently. Our reads block nothing else.
SELECT EXISTS (
    SELECT
    FROM pg_locks AS waiting
    CROSS JOIN LATERAL unnest(pg_blocking_pids(waiting.pid)) AS blocking (pid)
    JOIN pg_stat_activity AS ours ON ours.pid = blocking.pid
    WHERE NOT waiting.granted
        AND (waiting.mode = 'AccessExclusiveLock' OR waiting.locktype = 'virtualxid')
        AND coalesce(waiting.waitstart, '-infinity') <= clock_timestamp() - make_interval(secs => @patience)
        AND ours.usename = session_user
        AND ours.application_name = current_setting('application_name')
        AND ours.pid <> pg_backend_pid()
);

-- name: Slot :many
-- Our slot, if it exists.
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
    )::bigint AS retained,
    -- Columns of PostgreSQL 17 and later.
    coalesce((to_jsonb(slots) ->> 'failover')::boolean, false) AS failover,
    coalesce((to_jsonb(slots) ->> 'synced')::boolean, false) AND pg_is_in_recovery() AS synced,
    to_jsonb(slots) ->> 'invalidation_reason' AS invalidation
FROM pg_replication_slots AS slots
WHERE slot_name = @slot;

-- name: WalEnd :many
-- The position up to which this server can stream now: flushed on a primary, replayed on a standby. Also the timeline of a
-- primary, in hexadecimal digits; for a standby only the replication protocol reports it. And the next transaction id, with 64 bits.
SELECT
    (CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_flush_lsn() END)::text,
    CASE WHEN NOT pg_is_in_recovery() THEN substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8) END AS timeline,
    pg_snapshot_xmax(pg_current_snapshot())::text AS next_xid;

-- name: InRecovery :many
-- Whether this is a standby.
SELECT pg_is_in_recovery();

-- name: LogRunning :many
-- Have a primary log its running transactions, which a slot on a standby waits for. From PostgreSQL 16 on.
SELECT pg_log_standby_snapshot()::text;

-- name: OldestTransactions :many
-- The transactions for which the creation of a slot waits: running or prepared ones, the oldest first.
SELECT
    concat('process ', pid, ' (', usename, ', ', state, ', since ', xact_start::timestamptz(0), ')') AS whom,
    format('SELECT pg_terminate_backend(%s);', pid) AS remedy
FROM pg_stat_activity
WHERE backend_xid IS NOT NULL AND pid <> pg_backend_pid()
UNION ALL
SELECT
    concat('prepared transaction ', quote_literal(gid), ' (', owner, ', since ', prepared::timestamptz(0), ')'),
    concat(
        format('ROLLBACK PREPARED %L;', gid),
        CASE WHEN database <> current_database() THEN format(' (in the database %I)', database) END
    )
FROM pg_prepared_xacts
LIMIT 5;

-- name: SoftDeleted :many
-- The mapping's tables that mark rows as deleted: a mapping that ignores the mark would authorize them forever.
SELECT DISTINCT c.relname::text
FROM pg_class c
JOIN pg_namespace n ON n.oid = c.relnamespace
JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname IN ('deleted', 'deleted_at') AND NOT a.attisdropped
WHERE n.nspname = @schema AND c.relname = ANY (@tables);

-- name: Server :many
-- The server's version and settings, and our role. A setting that the server does not know is NULL.
SELECT
    current_setting('server_version_num')::int / 10000 AS major,
    pg_is_in_recovery() AS in_recovery,
    current_database()::text AS database,
    pg_roles.rolname::text AS role,
    pg_roles.rolsuper AS superuser,
    to_regrole('rds_replication') IS NOT NULL AS on_rds,
    host(inet_client_addr()) AS client,
    current_setting('ssl') = 'on' AS ssl,
    current_setting('wal_level') AS wal_level,
    (SELECT setting FROM pg_settings WHERE name = 'output_plugin_libraries') AS output_plugins,
    current_setting('max_replication_slots')::int AS slots_most,
    (SELECT count(*) FROM pg_replication_slots)::int AS slots_used,
    current_setting('max_wal_senders')::int AS senders_most,
    (SELECT count(*) FROM pg_stat_replication)::int AS senders_used,
    (
        SELECT CASE WHEN setting::bigint >= 0 THEN setting::bigint * 1048576 END
        FROM pg_settings
        WHERE name = 'max_slot_wal_keep_size'
    ) AS keep_bytes,
    nullif(current_setting('idle_replication_slot_timeout', true), '0') AS idle_timeout,
    current_setting('hot_standby_feedback') = 'on' AS feedback,
    current_setting('primary_slot_name') AS primary_slot,
    coalesce(current_setting('sync_replication_slots', true), 'off') = 'on' AS syncs_slots,
    coalesce(current_setting('synchronized_standby_slots', true), '') AS waited_for,
    (SELECT setting ~ '[[:<:]]dbname[[:space:]]*=' FROM pg_settings WHERE name = 'primary_conninfo') AS names_database,
    has_database_privilege('public', current_database(), 'CONNECT') AS open_to_public
FROM pg_roles
WHERE pg_roles.rolname = current_user;

-- name: Clock :many
-- The server's clock, in seconds since 1970.
SELECT extract(epoch FROM clock_timestamp())::float8;

-- name: Identity :many
-- The cluster's system identifier, which all its servers share.
SELECT system_identifier::text FROM pg_control_system();

-- name: MappedTables :many
-- Every relation with the name of a mapped table, and its partitions: its kind, its replica identity, and our privileges on it.
-- Without what the query Relations leaves out.
WITH RECURSIVE tree (mapped, relid, top) AS (
    SELECT c.relname, c.oid, true
    FROM pg_class c
    JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = @schema AND c.relname = ANY (@tables) AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
        -- Any role that may create objects here could create a missing signal table, and make us recompute endpoints.
        AND (
            c.relname <> ALL (@signals::text[])
            OR c.relowner = n.nspowner
            OR EXISTS (SELECT FROM pg_roles r WHERE r.oid = c.relowner AND r.rolsuper)
            OR EXISTS (
                SELECT FROM pg_class read
                WHERE read.relnamespace = n.oid AND read.relowner = c.relowner
                    AND read.relname = ANY (@tables) AND read.relname <> ALL (@signals::text[])
            )
        )
    UNION ALL
    SELECT tree.mapped, i.inhrelid, false
    FROM tree
    JOIN pg_inherits i ON i.inhparent = tree.relid AND NOT i.inhdetachpending
    JOIN pg_class part ON part.oid = i.inhrelid AND part.relpersistence <> 't'
)
SELECT
    c.oid,
    tree.mapped::text AS mapped,
    tree.top,
    format('%I.%I', n.nspname, c.relname) AS name,
    c.relkind::text AS kind,
    c.relpersistence = 'p' AS logged,
    c.relreplident::text AS identity_kind,
    ARRAY(
        SELECT a.attname::text
        FROM pg_attribute a
        WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
        ORDER BY a.attnum
    ) AS columns,
    ARRAY(
        SELECT a.attname::text
        FROM pg_attribute a
        WHERE a.attrelid = c.oid AND NOT a.attisdropped AND a.attgenerated = 'v'
        ORDER BY a.attnum
    ) AS virtual_columns,
    ARRAY(
        SELECT a.attname::text
        FROM pg_attribute a
        WHERE a.attrelid = c.oid AND NOT a.attisdropped AND a.attgenerated <> ''
            AND (a.attgenerated = 'v' OR current_setting('server_version_num')::int < 180000)
        ORDER BY a.attnum
    ) AS unpublished,
    c.relreplident = 'f' AND current_setting('server_version_num')::int >= 180000 AND EXISTS (
        SELECT FROM pg_attribute a WHERE a.attrelid = c.oid AND NOT a.attisdropped AND a.attgenerated <> ''
    ) AS refuses_if_published,
    c.relrowsecurity AS row_security,
    row_security_active(c.oid) AS hides_rows,
    has_any_column_privilege(c.oid, 'SELECT') AS readable,
    has_table_privilege(c.oid, 'INSERT, UPDATE, DELETE, TRUNCATE') AS writable
FROM tree
JOIN pg_class c ON c.oid = tree.relid
JOIN pg_namespace n ON n.oid = c.relnamespace
ORDER BY mapped, name;

-- name: MappedIndexes :many
-- The indexes of tables, given by oid, with every property that decides how they can be used.
SELECT
    i.indrelid AS table_oid,
    c.relname::text AS raw_name,
    quote_ident(c.relname) AS name,
    format('%I.%I', n.nspname, c.relname) AS full_name,
    ARRAY(
        SELECT a.attname::text
        FROM unnest(i.indkey::int2[]) WITH ORDINALITY AS key (attnum, place)
        JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = key.attnum
        WHERE key.place <= i.indnkeyatts
        ORDER BY key.place
    ) AS columns,
    i.indisprimary AS is_primary,
    i.indisunique AS is_unique,
    i.indisvalid AS is_valid,
    i.indisreplident AS is_identity,
    i.indpred IS NULL AND i.indexprs IS NULL AS is_plain,
    i.indisunique AND i.indimmediate AND i.indpred IS NULL AND i.indexprs IS NULL
        AND NOT EXISTS (
            SELECT FROM pg_attribute a
            WHERE a.attrelid = i.indrelid AND a.attnum = ANY (i.indkey[0:i.indnkeyatts - 1]) AND NOT a.attnotnull
        ) AS may_identify,
    obj_description(c.oid, 'pg_class') AS comment
FROM pg_index i
JOIN pg_class c ON c.oid = i.indexrelid
JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE i.indrelid = ANY (@tables::oid[])
ORDER BY i.indrelid, i.indnkeyatts, c.relname;

-- name: Schema :many
-- Whether a schema exists, and whether we have USAGE on it.
SELECT has_schema_privilege(oid, 'USAGE') FROM pg_namespace WHERE nspname = @schema;

-- name: LegacyTriggers :many
-- Triggers of the mapped tables that work like those of PADS: they write a row for each endpoint, or notify, within the
-- writer's transaction.
SELECT
    t.tgname::text AS trigger_name,
    format('%I.%I', n.nspname, c.relname) AS table_name,
    format('DROP TRIGGER %I ON %I.%I;', t.tgname, n.nspname, c.relname) AS remedy
FROM pg_trigger t
JOIN pg_class c ON c.oid = t.tgrelid
JOIN pg_namespace n ON n.oid = c.relnamespace
JOIN pg_proc p ON p.oid = t.tgfoid
WHERE n.nspname = @schema AND c.relname = ANY (@tables)
    AND NOT t.tgisinternal AND t.tgparentid = 0 AND t.tgenabled <> 'D'
    AND p.prosrc ~* '[[:<:]](pg_notify|notify|portal_application_changes)[[:>:]]'
ORDER BY 2, 1;

-- name: TryPlugin :many
-- Create a slot and drop it. If the plugin cannot be loaded it fails, before it waits for transactions. The slot is dropped here
-- because the end of a session takes a moment: the slot of the next session may need the place.
SELECT pg_drop_replication_slot(made.slot_name)::text
FROM pg_create_logical_replication_slot(@slot, @plugin, true) AS made (slot_name, lsn);

-- name: GiveUpCreating :many
-- Cancel the creation of a slot by a process of the server, if it is still at it.
SELECT pg_cancel_backend(active_pid) AS cancelled
FROM pg_replication_slots
WHERE slot_name = @slot AND active_pid = @pid::int;

-- name: RoleSetting :many
-- A role's own value of a setting in this database; no row if there is none.
SELECT substr(given.assignment, length(@name::text) + 2) AS setting
FROM pg_db_role_setting s
JOIN pg_roles r ON r.oid = s.setrole
CROSS JOIN unnest(s.setconfig) AS given (assignment)
WHERE r.rolname = @role
    AND s.setdatabase IN (0, (SELECT oid FROM pg_database WHERE datname = current_database()))
    AND starts_with(given.assignment, concat(@name::text, '='))
ORDER BY s.setdatabase DESC
LIMIT 1;

-- name: EventTriggers :many
-- The event triggers whose functions an error's context names: the statement that disables each, and the one that enables it.
SELECT
    format('ALTER EVENT TRIGGER %I DISABLE;', e.evtname) AS disable,
    concat('ALTER EVENT TRIGGER ', quote_ident(e.evtname), ' ENABLE', CASE e.evtenabled
        WHEN 'A' THEN ' ALWAYS'
        WHEN 'R' THEN ' REPLICA'
    END, ';') AS enable
FROM pg_event_trigger e
JOIN pg_proc p ON p.oid = e.evtfoid
WHERE e.evtenabled <> 'D' AND strpos(@context, concat(p.proname, '(')) > 0
ORDER BY e.evtname;

-- name: Role :many
-- A role with its attributes and the privileges that it lacks; no row if it does not exist.
SELECT
    r.rolcanlogin AS may_login,
    r.rolsuper OR r.rolreplication OR coalesce(pg_has_role(r.oid, to_regrole('rds_replication'), 'MEMBER'), false)
        AS may_replicate,
    r.rolsuper OR r.rolbypassrls AS bypasses_row_security,
    has_database_privilege(r.oid, current_database(), 'CONNECT') AS may_connect,
    coalesce((SELECT has_schema_privilege(r.oid, n.oid, 'USAGE') FROM pg_namespace n WHERE n.nspname = @schema), false)
        AS may_use_schema,
    ARRAY(
        SELECT given.name
        FROM unnest(@tables::text[]) AS given (name)
        WHERE NOT has_table_privilege(r.oid, given.name, 'SELECT')
    ) AS unreadable,
    shobj_description(r.oid, 'pg_authid') AS comment
FROM pg_roles r
WHERE r.rolname = @role;

-- name: Grants :many
-- The statements that revoke a role's privileges on this database, its schemas and its tables.
SELECT format('REVOKE ALL ON %s FROM %I;', granted.what, @role::text)
FROM (
    SELECT 1 AS place, format('TABLE %I.%I', n.nspname, c.relname) AS what, c.relacl AS acl
    FROM pg_class c
    JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f')
    UNION ALL
    SELECT 2, format('SCHEMA %I', nspname), nspacl FROM pg_namespace
    UNION ALL
    SELECT 3, format('DATABASE %I', datname), datacl FROM pg_database WHERE datname = current_database()
) AS granted
WHERE EXISTS (
    SELECT FROM aclexplode(granted.acl) AS entry
    WHERE entry.grantee = (SELECT oid FROM pg_roles WHERE rolname = @role)
)
ORDER BY granted.place, granted.what;

-- name: Belongings :many
-- The obstacles to dropping a role, beside its privileges in this database: objects that it owns, and references from other databases.
SELECT DISTINCT
    CASE
        WHEN d.dbid NOT IN (0, here.oid) THEN format('is used in the database %s', other.datname)
        ELSE format('owns %s', pg_describe_object(d.classid, d.objid, d.objsubid))
    END,
    d.dbid NOT IN (0, here.oid) AS elsewhere
FROM pg_shdepend d
JOIN pg_database here ON here.datname = current_database()
LEFT JOIN pg_database other ON other.oid = d.dbid
WHERE d.refclassid = 'pg_authid'::regclass
    AND d.refobjid = (SELECT oid FROM pg_roles WHERE rolname = @role)
    AND (d.deptype = 'o' OR d.dbid NOT IN (0, here.oid))
ORDER BY 2, 1;

-- name: DatabaseId :many
-- The database: on a standby it has the same number.
SELECT oid::bigint FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database();

-- name: KeyColumns :many
-- The types of the mapped tables' columns with one of these names: the base type if it is a domain; its name in SQL; whether equal
-- values always have the same text; and if not, the collation, if that is the reason.
WITH RECURSIVE typed (mapped, column_name, type_oid, modifier, collation_oid) AS (
    SELECT c.relname, a.attname, a.atttypid, a.atttypmod, a.attcollation
    FROM pg_class c
    JOIN pg_namespace n ON n.oid = c.relnamespace
    JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
    WHERE n.nspname = @schema AND c.relname = ANY (@tables) AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
        AND a.attname = ANY (@columns)
    UNION ALL
    SELECT typed.mapped, typed.column_name, t.typbasetype, t.typtypmod, typed.collation_oid
    FROM typed
    JOIN pg_type t ON t.oid = typed.type_oid AND t.typtype = 'd'
)
SELECT
    typed.mapped::text AS mapped,
    typed.column_name::text AS column_name,
    CASE n.nspname
        WHEN 'pg_catalog' THEN format_type(t.oid, typed.modifier)
        ELSE format('%I.%I', n.nspname, t.typname)
    END AS type_name,
    t.typcategory::text AS category,
    t.typname NOT IN ('bpchar', 'numeric', 'float4', 'float8', 'interval', 'timetz', 'jsonb', 'citext', 'inet')
        AND t.typcategory NOT IN ('A', 'R', 'C') AND coalesce(k.collisdeterministic, true) AS exact,
    CASE WHEN NOT k.collisdeterministic THEN format('%I.%I', kn.nspname, k.collname) END AS collation_name
FROM typed
JOIN pg_type t ON t.oid = typed.type_oid AND t.typtype <> 'd'
JOIN pg_namespace n ON n.oid = t.typnamespace
LEFT JOIN pg_collation k ON k.oid = typed.collation_oid
LEFT JOIN pg_namespace kn ON kn.oid = k.collnamespace
ORDER BY 1, 2;

-- name: UnlistedReads :many
-- The relations that our transaction has locked and that are neither one of @tables nor a partition or child of one: planning a
-- query locks each table that it reads, also through views and inlined functions. Works on standbys, where no view can be made.
-- And those that the called functions read whose body is in the catalog (BEGIN ATOMIC): they are planned only when they run.
WITH RECURSIVE tree (relid) AS (
    SELECT c.oid
    FROM pg_class c
    JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = @schema AND c.relname = ANY (@tables::text[])
    UNION
    SELECT i.inhrelid
    FROM tree
    JOIN pg_inherits i ON i.inhparent = tree.relid
),
called (objid) AS (
    SELECT p.oid
    FROM unnest(@function_schemas::text[], @function_names::text[]) AS given (schema_name, name)
    JOIN pg_namespace n ON n.nspname = given.schema_name
    JOIN pg_proc p ON p.pronamespace = n.oid AND p.proname = given.name
    UNION
    SELECT d.refobjid
    FROM called
    JOIN pg_depend d ON d.classid = 'pg_proc'::regclass AND d.objid = called.objid AND d.deptype = 'n'
    WHERE d.refclassid = 'pg_proc'::regclass
),
read (relid) AS (
    SELECT l.relation
    FROM pg_locks l
    WHERE l.locktype = 'relation'
        AND l.pid = pg_backend_pid()
        AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())
    UNION
    SELECT d.refobjid
    FROM called
    JOIN pg_depend d ON d.classid = 'pg_proc'::regclass AND d.objid = called.objid AND d.deptype = 'n'
    WHERE d.refclassid = 'pg_class'::regclass
)
SELECT n.nspname::text AS schema_name, c.relname::text AS table_name, c.relkind::text AS kind
FROM read
JOIN pg_class c ON c.oid = read.relid
JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f')
    AND n.nspname NOT IN ('pg_catalog', 'information_schema')
    AND c.oid NOT IN (SELECT tree.relid FROM tree)
ORDER BY 1, 2;

-- name: ViewReads :many
-- What a view reads, by the dependencies that Postgres itself has recorded: relations with their columns, through other views and
-- through functions that have their body in the catalog (BEGIN ATOMIC); and the functions whose reads the catalog does not show.
WITH RECURSIVE reached (classid, objid) AS (
    SELECT r.tableoid, r.oid
    FROM pg_rewrite r
    WHERE r.ev_class = @view::regclass
    UNION
    SELECT further.classid, further.objid
    FROM reached
    JOIN pg_depend d ON d.classid = reached.classid AND d.objid = reached.objid AND d.deptype = 'n'
    CROSS JOIN LATERAL (
        SELECT r.tableoid, r.oid
        FROM pg_rewrite r
        JOIN pg_class c ON c.oid = r.ev_class AND c.relkind IN ('v', 'm')
        WHERE d.refclassid = 'pg_class'::regclass AND r.ev_class = d.refobjid
        UNION ALL
        SELECT d.refclassid, d.refobjid
        WHERE d.refclassid IN ('pg_proc'::regclass, 'pg_operator'::regclass)
    ) AS further (classid, objid)
)
SELECT
    n.nspname::text AS schema_name,
    c.relname::text AS name,
    c.relkind::text AS kind,
    ARRAY(
        SELECT a.attname::text
        FROM pg_attribute a
        WHERE a.attrelid = c.oid AND a.attnum = ANY (array_agg(d.refobjsubid))
        ORDER BY a.attnum
    ) AS columns
FROM reached
JOIN pg_depend d ON d.classid = reached.classid AND d.objid = reached.objid AND d.deptype = 'n'
JOIN pg_class c ON d.refclassid = 'pg_class'::regclass AND c.oid = d.refobjid AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
    AND c.oid <> @view::regclass
JOIN pg_namespace n ON n.oid = c.relnamespace AND n.nspname NOT IN ('pg_catalog', 'information_schema')
GROUP BY c.oid, n.nspname
UNION ALL
SELECT n.nspname::text, p.oid::regprocedure::text, 'function', ARRAY[]::text[]
FROM reached
JOIN pg_proc p ON reached.classid = 'pg_proc'::regclass AND p.oid = reached.objid AND p.prosqlbody IS NULL
JOIN pg_language l ON l.oid = p.prolang AND l.lanname NOT IN ('internal', 'c')
JOIN pg_namespace n ON n.oid = p.pronamespace
ORDER BY 3, 1, 2;

-- name: References :many
-- Which tables of a schema refer to which others by a foreign key, and by which columns.
SELECT child.relname::text AS child, column_of.attname::text AS child_column, parent.relname::text AS parent, key_of.attname::text AS key
FROM pg_constraint k
CROSS JOIN LATERAL unnest(k.conkey, k.confkey) AS pair (child_number, parent_number)
JOIN pg_attribute column_of ON column_of.attrelid = k.conrelid AND column_of.attnum = pair.child_number
JOIN pg_attribute key_of ON key_of.attrelid = k.confrelid AND key_of.attnum = pair.parent_number
JOIN pg_class child ON child.oid = k.conrelid
JOIN pg_class parent ON parent.oid = k.confrelid
JOIN pg_namespace n ON n.oid = child.relnamespace AND n.oid = parent.relnamespace
WHERE k.contype = 'f' AND n.nspname = @schema AND child.oid <> parent.oid;

-- name: Definitions :many
-- The columns of tables, with everything needed to create similar tables and values: `type_name` as SQL writes it,
-- `category` that of pg_type, also of a domain; the labels of an enum; and what a default or a generated column computes.
SELECT
    c.relname::text AS table_name,
    a.attname::text AS column_name,
    format_type(a.atttypid, a.atttypmod) AS type_name,
    t.typcategory::text AS category,
    CASE WHEN a.attcollation NOT IN (0, t.typcollation) THEN (
        SELECT format('%I.%I', kn.nspname, k.collname)
        FROM pg_collation k
        JOIN pg_namespace kn ON kn.oid = k.collnamespace
        WHERE k.oid = a.attcollation
    ) END AS collation_name,
    a.attnotnull OR (t.typtype = 'd' AND t.typnotnull) AS not_null,
    a.attgenerated <> '' AS generated,
    a.attidentity <> '' AS identity,
    pg_get_expr(d.adbin, d.adrelid) AS computed,
    ARRAY(SELECT e.enumlabel::text FROM pg_enum e WHERE e.enumtypid = t.oid ORDER BY e.enumsortorder) AS labels,
    EXISTS (
        SELECT FROM pg_constraint k
        WHERE k.conrelid = c.oid AND k.contype IN ('p', 'f', 'u') AND a.attnum = ANY (k.conkey)
    ) AS linking
FROM pg_class c
JOIN pg_namespace n ON n.oid = c.relnamespace
JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
JOIN pg_type t ON t.oid = a.atttypid
LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
WHERE n.nspname = @schema AND c.relname = ANY (@tables::text[]) AND c.relkind IN ('r', 'p')
ORDER BY c.relname, a.attnum;

-- name: Constraints :many
-- The CHECK and uniqueness constraints of tables, as SQL writes them, without those that run functions or operators outside of
-- pg_catalog: other roles own these, and they would run with our rights.
SELECT c.relname::text AS table_name, pg_get_constraintdef(k.oid) AS definition
FROM pg_constraint k
JOIN pg_class c ON c.oid = k.conrelid
JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = @schema AND c.relname = ANY (@tables::text[]) AND k.contype IN ('c', 'p', 'u')
    AND NOT EXISTS (
        SELECT FROM pg_depend d
        WHERE d.classid = 'pg_constraint'::regclass AND d.objid = k.oid
            AND d.refclassid IN ('pg_proc'::regclass, 'pg_operator'::regclass)
    )
ORDER BY c.relname, k.oid;

-- name: ColumnName :many
-- A column of a table, given by oid and number.
SELECT format('%I.%I', c.relname, a.attname)
FROM pg_attribute a
JOIN pg_class c ON c.oid = a.attrelid
WHERE a.attrelid = @table::oid AND a.attnum = @number;

-- name: RunsOthers :many
-- The columns that run functions outside of pg_catalog whenever a row is written, even to a copy: generated columns, and those
-- whose type contains a domain with such a check. Constraints of the tables themselves are left out of copies for the same
-- reason; see `Constraints`.
WITH RECURSIVE used (table_name, column_name, type) AS (
    SELECT c.relname::text, a.attname::text, a.atttypid
    FROM pg_class c
    JOIN pg_namespace n ON n.oid = c.relnamespace
    JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
    WHERE n.nspname = @schema AND c.relname = ANY (@tables::text[])
    UNION
    SELECT used.table_name, used.column_name, part.type
    FROM used
    JOIN pg_type t ON t.oid = used.type
    CROSS JOIN LATERAL (
        SELECT t.typbasetype WHERE t.typtype = 'd'
        UNION ALL SELECT t.typelem WHERE t.typelem <> 0
        UNION ALL SELECT r.rngsubtype FROM pg_range r WHERE t.oid IN (r.rngtypid, r.rngmultitypid)
        UNION ALL
        SELECT a.atttypid FROM pg_attribute a WHERE a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped
    ) AS part (type)
),
others (class, object) AS (
    SELECT d.classid, d.objid
    FROM pg_depend d
    WHERE d.refclassid IN ('pg_proc'::regclass, 'pg_operator'::regclass)
)
SELECT used.table_name, used.column_name
FROM used
JOIN pg_constraint k ON k.contypid = used.type
JOIN others ON others.class = 'pg_constraint'::regclass AND others.object = k.oid
UNION
SELECT c.relname::text, a.attname::text
FROM pg_class c
JOIN pg_namespace n ON n.oid = c.relnamespace
JOIN pg_attribute a ON a.attrelid = c.oid AND a.attgenerated <> ''
JOIN pg_attrdef e ON e.adrelid = c.oid AND e.adnum = a.attnum
JOIN others ON others.class = 'pg_attrdef'::regclass AND others.object = e.oid
WHERE n.nspname = @schema AND c.relname = ANY (@tables::text[])
ORDER BY 1, 2;

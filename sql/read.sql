-- What every read of a mapping begins with, whatever the mapping.

-- name: Header :many
-- What the read can be trusted for, from the same statement and so from the same snapshot: the snapshot, three ends of the
-- WAL after it was taken (of what is written, of what is flushed and so can be decoded, and one that nothing visible can
-- lie beyond: a standby shows a commit a moment before it says that it has replayed it), and what the session knew
-- of the server before it was taken; a server that was promoted in between vouches for nothing. NULLs stand for the mapping's columns. It comes first because an Append runs its parts in their order, unless it is parallel: the condition, always
-- true, is there because no plan is parallel above a function that only the leader may call.
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
                greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn())
            )
        ELSE concat_ws(' ', pg_current_wal_insert_lsn(), pg_current_wal_flush_lsn(), pg_current_wal_insert_lsn())
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

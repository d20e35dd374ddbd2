-- Prepares a database for the mapping `portal_db`. The tables' owner runs it, any number of times:
-- `psql -v schema=public -v role=streamer -f setup.sql`. `pads-cdc setup` takes the GRANT and CREATE INDEX statements from
-- here and does the rest more carefully. The grants let the server read; all else makes it faster, but not more exact.

-- Every table is named with its schema. If the schema were in the search path instead, the session could run functions and
-- operators that others have put there, with the administrator's rights.
SELECT
    pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', false),
    pg_catalog.set_config('pads_cdc.schema', :'schema', false),
    pg_catalog.set_config('pads_cdc.indexes', 'portal_accounts_plan_type_idx', false);

-- The least privileges that the server's role needs, beside REPLICATION. Policies would hide all rows from it, which would look like
-- deletes. Granting BYPASSRLS takes a superuser, or a role that may grant it.
GRANT USAGE ON SCHEMA :"schema" TO :"role";
GRANT SELECT ON
    :"schema".portal_applications,
    :"schema".portal_accounts,
    :"schema".portal_plans
TO :"role";
ALTER ROLE :"role" BYPASSRLS;

\ir ../shared/broken_indexes.sql

-- This finds the accounts of a changed plan; the schema already has an index for an account's applications. CONCURRENTLY
-- lets writers go on.
CREATE INDEX CONCURRENTLY IF NOT EXISTS portal_accounts_plan_type_idx ON :"schema".portal_accounts (portal_plan_type);

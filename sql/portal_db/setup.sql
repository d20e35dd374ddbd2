-- Makes a database ready for the mapping `portal_db`, as often as one likes, for the owner of the tables:
-- `psql -v schema=public -v role=streamer -f setup.sql`. `pads-cdc setup` takes the GRANT and CREATE INDEX statements from
-- here and does the rest more carefully. All of it lets the server read or makes it faster; none makes it right.

-- Every table is named with its schema. A session that looked into that schema would also find the functions and operators
-- that others may have put there, and run them with the administrator's rights.
SELECT
    pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', false),
    pg_catalog.set_config('pads_cdc.schema', :'schema', false),
    pg_catalog.set_config('pads_cdc.indexes', 'portal_accounts_plan_type_idx', false);

-- The least that the server's role needs, beside REPLICATION. Policies would hide all rows from it, which would be taken for
-- deletes: this takes a superuser, or who may give BYPASSRLS.
GRANT USAGE ON SCHEMA :"schema" TO :"role";
GRANT SELECT ON
    :"schema".portal_applications,
    :"schema".portal_accounts,
    :"schema".portal_plans
TO :"role";
ALTER ROLE :"role" BYPASSRLS;

\ir ../shared/broken_indexes.sql

-- A change of a plan finds its accounts by this; applications of accounts have an index by the schema. CONCURRENTLY keeps
-- nobody from writing.
CREATE INDEX CONCURRENTLY IF NOT EXISTS portal_accounts_plan_type_idx ON :"schema".portal_accounts (portal_plan_type);

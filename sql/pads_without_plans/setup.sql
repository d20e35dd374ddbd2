-- Makes a database ready for the mapping `pads_without_plans`, as often as one likes, for the owner of the tables:
-- `psql -v schema=public -v role=streamer -f setup.sql`. `pads-cdc setup` takes the GRANT and CREATE INDEX statements from
-- here and does the rest more carefully. All of it lets the server read or makes it faster; none makes it right.

-- Every table is named with its schema. A session that looked into that schema would also find the functions and operators
-- that others may have put there, and run them with the administrator's rights.
SELECT
    pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', false),
    pg_catalog.set_config('pads_cdc.schema', :'schema', false),
    pg_catalog.set_config('pads_cdc.indexes', 'portal_applications_account_id_idx', false),
    pg_catalog.set_config('pads_cdc.identities', 'portal_application_settings.application_id', false);

-- The least that the server's role needs, beside REPLICATION.
GRANT USAGE ON SCHEMA :"schema" TO :"role";
GRANT SELECT ON
    :"schema".portal_applications,
    :"schema".portal_application_settings,
    :"schema".accounts
TO :"role";

\ir ../shared/broken_indexes.sql

-- A change of an account finds its applications by this. CONCURRENTLY keeps nobody from writing.
CREATE INDEX CONCURRENTLY IF NOT EXISTS portal_applications_account_id_idx ON :"schema".portal_applications (account_id);

\ir ../shared/identities.sql

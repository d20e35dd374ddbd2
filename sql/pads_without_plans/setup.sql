-- Prepares a database for the mapping `pads_without_plans`. The tables' owner runs it, any number of times:
-- `psql -v schema=public -v role=streamer -f setup.sql`. `pads-cdc setup` takes the GRANT and CREATE INDEX statements from
-- here and does the rest more carefully. The grants let the server read; all else makes it faster, but not more exact.

-- Every table is named with its schema. If the schema were in the search path instead, the session could run functions and
-- operators that others have put there, with the administrator's rights.
SELECT
    pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', false),
    pg_catalog.set_config('pads_cdc.schema', :'schema', false),
    pg_catalog.set_config('pads_cdc.indexes', 'portal_applications_account_id_idx', false),
    pg_catalog.set_config('pads_cdc.identities', 'portal_application_settings.application_id', false);

-- The least privileges that the server's role needs, beside REPLICATION.
GRANT USAGE ON SCHEMA :"schema" TO :"role";
GRANT SELECT ON
    :"schema".portal_applications,
    :"schema".portal_application_settings,
    :"schema".accounts
TO :"role";

\ir ../shared/broken_indexes.sql

-- This finds the applications of a changed account. CONCURRENTLY lets writers go on.
CREATE INDEX CONCURRENTLY IF NOT EXISTS portal_applications_account_id_idx ON :"schema".portal_applications (account_id);

\ir ../shared/identities.sql

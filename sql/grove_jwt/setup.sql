-- Prepares a database for the mapping `grove_jwt`. The tables' owner runs it, any number of times:
-- `psql -v schema=public -v role=streamer -f setup.sql`. `pads-cdc setup` takes the GRANT and CREATE INDEX statements from
-- here and does the rest more carefully. The grants let the server read; all else makes it faster, but not more exact.

-- Every table is named with its schema. If the schema were in the search path instead, the session could run functions and
-- operators that others have put there, with the administrator's rights.
SELECT
    pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', false),
    pg_catalog.set_config('pads_cdc.schema', :'schema', false),
    pg_catalog.set_config(
        'pads_cdc.indexes',
        'portal_applications_account_id_idx accounts_plan_type_idx account_users_account_id_idx',
        false
    ),
    pg_catalog.set_config(
        'pads_cdc.identities',
        'portal_application_settings.application_id account_users.account_id user_auth_providers.user_id',
        false
    );

-- The least privileges that the server's role needs, beside REPLICATION.
GRANT USAGE ON SCHEMA :"schema" TO :"role";
GRANT SELECT ON
    :"schema".portal_applications,
    :"schema".portal_application_settings,
    :"schema".accounts,
    :"schema".pay_plans,
    :"schema".account_users,
    :"schema".users,
    :"schema".user_auth_providers
TO :"role";

\ir ../shared/broken_indexes.sql

-- These find the applications of a changed account or plan. CONCURRENTLY lets writers go on.
CREATE INDEX CONCURRENTLY IF NOT EXISTS portal_applications_account_id_idx ON :"schema".portal_applications (account_id);
CREATE INDEX CONCURRENTLY IF NOT EXISTS accounts_plan_type_idx ON :"schema".accounts (plan_type);
CREATE INDEX CONCURRENTLY IF NOT EXISTS account_users_account_id_idx ON :"schema".account_users (account_id);

\ir ../shared/identities.sql

-- The mapping `grove_jwt`: as `grove`, but where a key is required and the account has users, those users call by JWT.
--
-- `Endpoints` is the mapping. The other queries find the endpoints that a changed row affects, by the keys that affects.toml
-- names, and fill the memory of rows whose deletes name only their own id.

-- include: ../shared/endpoints_of.sql

-- name: Endpoints :many
-- Every present endpoint, each once. `authorized_users` is NULL if the endpoint has a static key. It is empty if no user of
-- the account can sign in: then no call is allowed. The query reads users one account at a time, through indexes. If
-- settings are not unique by application, the greatest id wins. The anti-join names only `settings`, so that the planner
-- can resolve it before or after the join.
SELECT
    applications.id AS endpoint_id,
    settings.secret_key,
    settings.secret_key_required,
    CASE
        WHEN settings.secret_key_required AND EXISTS (
            SELECT 1
            FROM account_users
            WHERE account_users.account_id = applications.account_id
        )
            THEN ARRAY(
                SELECT DISTINCT user_auth_providers.provider_user_id::TEXT
                FROM account_users
                INNER JOIN users ON users.id = account_users.user_id
                INNER JOIN user_auth_providers ON user_auth_providers.user_id = users.id
                WHERE account_users.account_id = applications.account_id
            )
    END AS authorized_users,
    applications.account_id,
    accounts.plan_type,
    pay_plans.throughput_limit,
    pay_plans.monthly_relay_limit AS capacity_limit
FROM portal_applications AS applications
LEFT JOIN portal_application_settings AS settings
    ON settings.application_id = applications.id
    AND NOT EXISTS (
        SELECT 1
        FROM portal_application_settings AS newer
        WHERE newer.application_id = settings.application_id AND newer.id > settings.id
    )
LEFT JOIN accounts ON accounts.id = applications.account_id
LEFT JOIN pay_plans ON pay_plans.plan_type = accounts.plan_type;

-- name: EndpointsOfUsers :many
-- The applications of all accounts of these users. A deleted user has no account any more; its rows of account_users,
-- which were deleted with it, name the accounts.
SELECT applications.id AS endpoint_id
FROM account_users
INNER JOIN portal_applications AS applications ON applications.account_id = account_users.account_id
WHERE account_users.user_id = ANY(@keys::TEXT[]);

-- name: ParentsOfAccountUsers :many
-- As for settings: the account to which a user belonged.
SELECT
    account_users.id AS row_id,
    account_users.account_id AS parent
FROM account_users;

-- name: ParentsOfUserAuthProviders :many
-- As for settings: the user to whom a sign-in belonged.
SELECT
    user_auth_providers.id AS row_id,
    user_auth_providers.user_id AS parent
FROM user_auth_providers;

-- The mapping `portal_db`: the portal database in PATH's repository, where a row with `deleted_at` is deleted.
--
-- `Endpoints` is the mapping. The other queries find the endpoints that a changed row affects, by the keys that affects.toml
-- names. All of them are subqueries of larger statements (cdc/mapping/mapping.py).

-- name: Endpoints :many
-- Every present endpoint, each once, without deleted ones and those of deleted accounts. A limit of the application takes
-- precedence over its account's, which takes precedence over the plan's; the period belongs to the chosen limit.
-- `secret_key_hash` holds the plain key: the schema defines no hash for it.
SELECT
    applications.portal_application_id AS endpoint_id,
    applications.secret_key_hash AS secret_key,
    applications.secret_key_required,
    NULL::TEXT[] AS authorized_users,
    applications.portal_account_id AS account_id,
    accounts.portal_plan_type AS plan_type,
    coalesce(
        applications.portal_application_user_limit_rps,
        accounts.portal_account_user_limit_rps,
        plans.plan_rate_limit_rps
    ) AS throughput_limit,
    coalesce(
        applications.portal_application_user_limit,
        accounts.portal_account_user_limit,
        plans.plan_usage_limit
    ) AS capacity_limit,
    CASE
        WHEN applications.portal_application_user_limit IS NOT NULL
            THEN applications.portal_application_user_limit_interval
        WHEN accounts.portal_account_user_limit IS NOT NULL
            THEN accounts.portal_account_user_limit_interval
        ELSE plans.plan_usage_limit_interval
    END::TEXT AS capacity_limit_period,
    applications.portal_application_name AS name
FROM portal_applications AS applications
INNER JOIN portal_accounts AS accounts ON accounts.portal_account_id = applications.portal_account_id
LEFT JOIN portal_plans AS plans ON plans.portal_plan_type = accounts.portal_plan_type
WHERE applications.deleted_at IS NULL AND accounts.deleted_at IS NULL;

-- name: EndpointsOfApplications :many
-- An application is its endpoint. Ids without an application are returned too: these endpoints are deleted.
SELECT key::TEXT AS endpoint_id
FROM unnest(@keys::TEXT[]) AS key;

-- name: EndpointsOfAccounts :many
-- The applications of accounts, deleted ones too: if the mapping returns no row for one, its endpoint is deleted.
SELECT applications.portal_application_id AS endpoint_id
FROM portal_applications AS applications
WHERE applications.portal_account_id = ANY(@keys::TEXT[]);

-- name: EndpointsOfPlans :many
-- The applications of all accounts on plans: the largest ripple there is.
SELECT applications.portal_application_id AS endpoint_id
FROM portal_accounts AS accounts
INNER JOIN portal_applications AS applications ON applications.portal_account_id = accounts.portal_account_id
WHERE accounts.portal_plan_type = ANY(@keys::TEXT[]);

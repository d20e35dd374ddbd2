-- The mapping `pads_soft_delete`: as `grove`, for the schema of PADS where `deleted = true` means a deleted application.
--
-- `Endpoints` is the mapping. The other queries find the endpoints that a changed row affects, by the keys that affects.toml
-- names, and fill the memory of rows whose deletes name only their own id.

-- include: ../shared/endpoints_of.sql

-- name: Endpoints :many
-- Every present endpoint, each once, without deleted ones. If settings are not unique by application, the greatest id
-- wins. The anti-join names only `settings`, so that the planner can resolve it before or after the join.
SELECT
    applications.id AS endpoint_id,
    settings.secret_key,
    settings.secret_key_required,
    NULL::TEXT[] AS authorized_users,
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
LEFT JOIN pay_plans ON pay_plans.plan_type = accounts.plan_type
WHERE applications.deleted IS NOT TRUE;

-- The common queries of the mappings of PADS' portal: they find endpoints by keys, and load the memory of parents. All are
-- subqueries of larger statements (cdc/mapping/mapping.py), so the planner sees the whole statement, and for a few keys it
-- reaches every table through an index.

-- name: EndpointsOfApplications :many
-- An application is its endpoint. Ids without an application are returned too: these endpoints are deleted.
SELECT key::TEXT AS endpoint_id
FROM unnest(@keys::TEXT[]) AS key;

-- name: EndpointsOfAccounts :many
-- The applications of accounts, deleted ones too: if the mapping returns no row for one, its endpoint is deleted.
SELECT applications.id AS endpoint_id
FROM portal_applications AS applications
WHERE applications.account_id = ANY(@keys::TEXT[]);

-- name: EndpointsOfPlans :many
-- The applications of all accounts on pay plans: the largest ripple there is.
SELECT applications.id AS endpoint_id
FROM accounts
INNER JOIN portal_applications AS applications ON applications.account_id = accounts.id
WHERE accounts.plan_type = ANY(@keys::TEXT[]);

-- name: ParentsOfSettings :many
-- With the default replica identity, a deleted or moved settings row names its serial id, but not its application.
SELECT
    settings.id AS row_id,
    settings.application_id AS parent
FROM portal_application_settings AS settings;

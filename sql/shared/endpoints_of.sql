-- What mappings of the portal of PADS have in common: how keys find endpoints, and the memory of parents. All of it is
-- subqueries of larger statements (cdc/mapping/mapping.py), so the planner decides on the whole, and for a few keys every
-- table is reached through an index.

-- name: EndpointsOfApplications :many
-- An application is its endpoint. The ids are returned even where no application has them any more: those are deletes.
SELECT key::TEXT AS endpoint_id
FROM unnest(@keys::TEXT[]) AS key;

-- name: EndpointsOfAccounts :many
-- The applications of accounts, deleted ones too: what the mapping does not return for them is a delete.
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

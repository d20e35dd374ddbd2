-- The mapping as queries. Each has a name, in a line of its own as sqlc has it. Tables are named without a schema.

-- name: Endpoints :many
-- Every endpoint as it is now, each id once; what it does not return does not exist. The first eight columns are needed, in
-- any order, with a NULL where you have none. capacity_limit_period, name, user_id, email and environment may follow.
SELECT
    tokens.id AS endpoint_id,
    tokens.secret AS secret_key,
    true AS secret_key_required,
    NULL::TEXT[] AS authorized_users,
    teams.id AS account_id,
    teams.tier AS plan_type,
    tiers.calls_a_second AS throughput_limit,
    NULL::INT AS capacity_limit
FROM tokens
INNER JOIN teams ON teams.id = tokens.team_id
LEFT JOIN tiers ON tiers.name = teams.tier
WHERE NOT teams.closed;

-- For each table above, how a changed row of it finds its endpoints. @keys are values of the column that affects.toml names,
-- from before and after the change. Cast them to an array of the type of the column that they are compared with. List an id
-- also where there is no such endpoint any more: then it is a delete. So leave conditions such as NOT teams.closed out here.

-- name: EndpointsOfTokens :many
SELECT key::TEXT AS endpoint_id
FROM unnest(@keys::TEXT[]) AS key;

-- name: EndpointsOfTeams :many
SELECT tokens.id AS endpoint_id
FROM tokens
WHERE tokens.team_id = ANY(@keys::BIGINT[]);

-- name: EndpointsOfTiers :many
SELECT tokens.id AS endpoint_id
FROM teams
INNER JOIN tokens ON tokens.team_id = teams.id
WHERE teams.tier = ANY(@keys::TEXT[]);

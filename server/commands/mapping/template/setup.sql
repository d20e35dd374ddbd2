-- What `pads-cdc setup` makes: the right to read the tables, and an index for each way in which a query above finds endpoints.
GRANT USAGE ON SCHEMA :"schema" TO :"role";
GRANT SELECT ON :"schema".tiers, :"schema".teams, :"schema".tokens TO :"role";
CREATE INDEX CONCURRENTLY IF NOT EXISTS tokens_team_id_idx ON :"schema".tokens (team_id);
CREATE INDEX CONCURRENTLY IF NOT EXISTS teams_tier_idx ON :"schema".teams (tier);

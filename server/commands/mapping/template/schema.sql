-- The tables that the mapping reads, one CREATE TABLE each, with every column that it uses. Put yours in place of these:
-- pg_dump --schema-only --no-owner --no-privileges -t TABLE -t TABLE ... DATABASE

CREATE TABLE tiers (
    name TEXT PRIMARY KEY,
    calls_a_second INT
);
CREATE TABLE teams (
    id BIGINT PRIMARY KEY,
    tier TEXT REFERENCES tiers (name),
    closed BOOLEAN NOT NULL DEFAULT false
);
CREATE TABLE tokens (
    id UUID PRIMARY KEY,
    team_id BIGINT NOT NULL REFERENCES teams (id),
    secret TEXT NOT NULL
);

-- If the replica identity is an index with the key that affects endpoints, updates and deletes contain that key, and the server
-- has to remember nothing. Such an index must be unique, complete, immediate and without nullable columns. An identity that
-- contains the key already (FULL, for example) stays. `pads_cdc.identities` lists the keys as `table.column`.
DO $$
DECLARE
    wanted RECORD;
    found NAME;
BEGIN
    FOR wanted IN
        SELECT
            pg_class.oid,
            pg_class.oid::REGCLASS::TEXT AS table_name,
            identities.key_column
        FROM (
            SELECT split_part(named, '.', 1) AS table_name, split_part(named, '.', 2) AS key_column
            FROM unnest(string_to_array(current_setting('pads_cdc.identities'), ' ')) AS named
        ) AS identities
        INNER JOIN pg_class ON pg_class.oid
            = to_regclass(format('%I.%I', current_setting('pads_cdc.schema'), identities.table_name))
        WHERE
            pg_class.relreplident <> 'f'
            AND NOT EXISTS (
                SELECT 1
                FROM pg_index
                INNER JOIN pg_attribute
                    ON pg_attribute.attrelid = pg_index.indrelid AND pg_attribute.attnum = ANY(pg_index.indkey)
                WHERE
                    pg_index.indrelid = pg_class.oid
                    AND pg_class.relreplident = 'i'
                    AND pg_index.indisreplident
                    AND pg_attribute.attname = identities.key_column
            )
    LOOP
        SELECT index_class.relname INTO found
        FROM pg_index
        INNER JOIN pg_class AS index_class ON index_class.oid = pg_index.indexrelid
        INNER JOIN pg_attribute
            ON pg_attribute.attrelid = pg_index.indrelid AND pg_attribute.attnum = ANY(pg_index.indkey)
        WHERE
            pg_index.indrelid = wanted.oid
            AND pg_index.indisunique AND pg_index.indimmediate AND pg_index.indisvalid
            AND pg_index.indnkeyatts = pg_index.indnatts
            AND pg_index.indpred IS NULL
            AND pg_index.indexprs IS NULL
        GROUP BY index_class.relname, pg_index.indnatts
        HAVING
            bool_or(pg_attribute.attname = wanted.key_column)
            AND bool_and(pg_attribute.attnotnull)
        ORDER BY pg_index.indnatts, index_class.relname
        LIMIT 1;
        IF found IS NULL THEN
            RAISE EXCEPTION 'no unique index of % can carry %', wanted.table_name, wanted.key_column
                USING HINT = format(
                    'Add a unique constraint that has the column %I to %s, and set no column of it nullable.',
                    wanted.key_column, wanted.table_name
                );
        END IF;
        -- Postgres refuses every UPDATE while a publication's column list lacks a column of the identity.
        IF EXISTS (
            SELECT 1
            FROM pg_publication_rel
            INNER JOIN pg_publication ON pg_publication.oid = pg_publication_rel.prpubid
            INNER JOIN pg_index ON pg_index.indrelid = wanted.oid
            INNER JOIN pg_class AS index_class ON index_class.oid = pg_index.indexrelid AND index_class.relname = found
            WHERE
                pg_publication_rel.prrelid = wanted.oid
                AND (pg_publication.pubupdate OR pg_publication.pubdelete)
                AND (
                    pg_publication_rel.prqual IS NOT NULL
                    OR NOT pg_index.indkey::SMALLINT [] <@ pg_publication_rel.prattrs::SMALLINT []
                )
        ) THEN
            RAISE WARNING 'the replica identity of % stays: a publication does not send all columns of %', wanted.table_name, found;
            CONTINUE;
        END IF;
        EXECUTE format('ALTER TABLE %s REPLICA IDENTITY USING INDEX %I', wanted.table_name, found);
    END LOOP;
END
$$;

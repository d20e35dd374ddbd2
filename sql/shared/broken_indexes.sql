-- An interrupted concurrent build leaves an invalid index behind, which IF NOT EXISTS would take for a valid one.
-- `pads_cdc.indexes` lists the indexes that setup.sql is about to create.
DO $$
DECLARE
    broken REGCLASS;
BEGIN
    FOR broken IN
        SELECT pg_index.indexrelid::REGCLASS
        FROM unnest(string_to_array(current_setting('pads_cdc.indexes'), ' ')) AS ours (index_name)
        INNER JOIN pg_index ON pg_index.indexrelid
            = to_regclass(format('%I.%I', current_setting('pads_cdc.schema'), ours.index_name))
        WHERE NOT pg_index.indisvalid
    LOOP
        EXECUTE format('DROP INDEX %s', broken);
    END LOOP;
END
$$;

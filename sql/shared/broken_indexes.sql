-- An index whose concurrent build was cut short stays behind, invalid, and IF NOT EXISTS would pass it by.
-- `pads_cdc.indexes` names those that setup.sql is about to make.
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

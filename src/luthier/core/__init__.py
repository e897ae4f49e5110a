"""The words everybody uses: records, contracts, registry, errors, log. Imports nothing of ours."""

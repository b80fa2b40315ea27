"""The exchange: liquibookd around the package `liquibook`, its line protocol (PROTOCOL.md), and its FIX edge."""

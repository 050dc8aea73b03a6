"""What others take from the record and keep: certificates, dumps, badges, cards."""

"""Crowdfunding: acts of donors and organisers, from what is signed to what is recorded."""

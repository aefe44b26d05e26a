"""What holds for the whole repository: import order, rules, pages, packages, stubs."""

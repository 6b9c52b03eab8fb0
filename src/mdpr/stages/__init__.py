"""The nine stages. Each is one function in a module of its own, paths in, paths out, parameters typed."""

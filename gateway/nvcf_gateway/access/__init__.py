"""Who may do what: authorization, tokens, signed links, the broker's auth callout."""

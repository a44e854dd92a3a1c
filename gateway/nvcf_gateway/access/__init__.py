"""Access control: authentication, authorization, tokens, signed URLs, the broker's auth callout."""

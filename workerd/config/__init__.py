"""The configuration: files under etc/ and environment variables to frozen values, all errors at once."""

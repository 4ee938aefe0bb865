"""What tests share: identities, fakes, running servers."""

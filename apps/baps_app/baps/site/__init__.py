"""What a site sets: settings, users, roles, OpenID, PACS credentials, the audit file and the doctor."""

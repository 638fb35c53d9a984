package sshagent

// forges maps the fingerprints of host keys to the forge that publishes them:
//
//   - https://docs.github.com/en/authentication/keeping-your-account-and-data-secure/githubs-ssh-key-fingerprints
//   - https://docs.gitlab.com/user/gitlab_com/#ssh-host-keys-fingerprints
//   - https://support.atlassian.com/bitbucket-cloud/docs/configure-ssh-and-two-step-verification/
//   - https://docs.codeberg.org/security/ssh-fingerprint/
//   - https://github.com/MicrosoftDocs/azure-devops-docs/pull/3371
//
// Only add keys whose private half nobody but the forge can hold.
var forges = map[string]string{
	"SHA256:+DiY3wvvV6TuJJhbpZisF/zLDA0zPMSvHdkr4UvCOqU": "github.com",        // Ed25519
	"SHA256:p2QAMXNIC1TJYWeIOttrVc98/R1BUFWu3/LiyKgUfQM": "github.com",        // ECDSA
	"SHA256:uNiVztksCsDhcc0u9e8BujQXVUpKZIDTMczCvj3tD2s": "github.com",        // RSA
	"SHA256:eUXGGm1YGsMAS7vkcx6JOJdOGHPem5gQp4taiCfCLB8": "gitlab.com",        // Ed25519
	"SHA256:HbW3g8zUjNSksFbqTiUWPWg2Bq1x8xdGUrliXFzSnUw": "gitlab.com",        // ECDSA
	"SHA256:ROQFvPThGrW4RuWLoL9tq9I9zJ42fK4XywyRtbOz/EQ": "gitlab.com",        // RSA
	"SHA256:ybgmFkzwOSotHTHLJgHO0QN8L0xErw6vd0VhFA9m3SM": "bitbucket.org",     // Ed25519
	"SHA256:FC73VB6C4OQLSCrjEayhMp9UMxS97caD/Yyi2bhW/J0": "bitbucket.org",     // ECDSA
	"SHA256:46OSHA1Rmj8E8ERTC6xkNcmGOw9oFxYr0WF6zWW8l1E": "bitbucket.org",     // RSA
	"SHA256:mIlxA9k46MmM6qdJOdMnAQpzGxF4WIVVL+fj+wZbw0g": "codeberg.org",      // Ed25519
	"SHA256:T9FYDEHELhVkulEKKwge5aVhVTbqCW0MIRwAfpARs/E": "codeberg.org",      // ECDSA
	"SHA256:6QQmYi4ppFS4/+zSZ5S4IU+4sa6rwvQ4PbhCtPEBekQ": "codeberg.org",      // RSA
	"SHA256:ohD8VZEXGWo6Ez8GSEJQ9WpafgLFsOfLOtGGQCQo6Og": "ssh.dev.azure.com", // RSA
}

// Forge returns the name of the public forge that publishes the host key, or "".
// The agent signs logins at a forge even if the signed data do not name the server,
// because several forges do not support host-bound authentication. Only the holder
// of the forge's private key could use such a signature elsewhere.
func Forge(hostKey PublicKey) string { return forges[Fingerprint(hostKey)] }

package egress

// The presets of this version of bottle, sorted by name. Other versions may have other
// hosts: a plan shows the hosts, and a running bottle keeps those that it started with.
//
// Rules for a preset: the fewest hosts with which the usual tools fetch, exact names
// only, and for each host how anybody but its operator could get data that is sent to
// it. Where that is not known to be impossible, Sends is not empty.
var presets = []Preset{
	{Name: "@alpine", Use: "packages of Alpine Linux (apk)", Hosts: []PresetHost{
		{Host: "dl-cdn.alpinelinux.org"},
	}},
	{Name: "@debian", Use: "packages of Debian (apt)", Hosts: []PresetHost{
		{Host: "deb.debian.org"},
		{Host: "security.debian.org"},
	}},
	{Name: "@github", Use: "GitHub over https: git, gh, releases, the API", Hosts: []PresetHost{
		{Host: "api.github.com", Sends: sendsGitHub},
		{Host: "codeload.github.com"},
		{Host: "github.com", Sends: sendsGitHub},
		{Host: "objects.githubusercontent.com"},
		{Host: "raw.githubusercontent.com"},
		{Host: "release-assets.githubusercontent.com"},
		{Host: "uploads.github.com", Sends: "accepts release files with a token of any account"},
	}},
	{Name: "@github-read", Use: "reading from GitHub over https: git clone, archives, releases, raw files", Hosts: []PresetHost{
		{Host: "codeload.github.com"},
		// Reading and writing use the same host, and the proxy does not see which it is.
		{Host: "github.com", Sends: sendsGitHub},
		{Host: "objects.githubusercontent.com"},
		{Host: "raw.githubusercontent.com"},
		{Host: "release-assets.githubusercontent.com"},
	}},
	{Name: "@ubuntu", Use: "packages of Ubuntu (apt)", Hosts: []PresetHost{
		{Host: "archive.ubuntu.com"},
		{Host: "ports.ubuntu.com"},
		{Host: "security.ubuntu.com"},
	}},
}

const sendsGitHub = "accepts pushes, issues and comments with a token of any account"

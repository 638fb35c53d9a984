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
	{Name: "@crates", Use: "Rust crates (cargo), without publishing and searching", Hosts: []PresetHost{
		{Host: "index.crates.io"},
		{Host: "static.crates.io"},
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
	{Name: "@go", Use: "Go modules and toolchains (go)", Hosts: []PresetHost{
		{Host: "proxy.golang.org", Sends: "fetches modules from any server that a request names"},
		// The module proxy redirects downloads of archives to it.
		{Host: "storage.googleapis.com", Sends: "accepts files for the storage of any account"},
		{Host: "sum.golang.org", Sends: "has modules fetched from any server that a request names"},
	}},
	{Name: "@maven", Use: "Maven Central (Maven, Gradle)", Hosts: []PresetHost{
		{Host: "repo.maven.apache.org"},
		{Host: "repo1.maven.org"},
	}},
	{Name: "@npm", Use: "npm packages (npm, pnpm, Yarn, Bun)", Hosts: []PresetHost{
		{Host: "registry.npmjs.org", Sends: sendsPackages},
		{Host: "registry.yarnpkg.com", Sends: sendsPackages},
	}},
	{Name: "@pypi", Use: "Python packages (pip, uv)", Hosts: []PresetHost{
		{Host: "files.pythonhosted.org"},
		{Host: "pypi.org", Sends: "accepts changes to projects and accounts by any account"},
	}},
	{Name: "@rubygems", Use: "Ruby gems (gem, Bundler)", Hosts: []PresetHost{
		{Host: "index.rubygems.org"},
		{Host: "rubygems.org", Sends: sendsPackages},
	}},
	{Name: "@ubuntu", Use: "packages of Ubuntu (apt)", Hosts: []PresetHost{
		{Host: "archive.ubuntu.com"},
		{Host: "ports.ubuntu.com"},
		{Host: "security.ubuntu.com"},
	}},
}

const (
	sendsGitHub   = "accepts pushes, issues and comments with a token of any account"
	sendsPackages = "accepts packages with a token of any account"
)

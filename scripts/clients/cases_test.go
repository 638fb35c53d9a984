package clients

// client is one task of a client, as a script for bash.
type client struct {
	tool string // its row in docs/clients.md
	what string
	// needs is the setup that the script requires; empty: none. Without it the script must fail.
	needs  string
	script string
	want   string // in its output; empty: it must fail
	// defaults are variables, set by bottle, without which the script must fail.
	defaults string
}

const (
	modules = "/opt/clients/node_modules/"
	bun     = "/opt/clients/bin/bun"
	deno    = "/opt/clients/bin/deno"
	node18  = "/opt/node18/bin/node"
	node20  = "/opt/node20/bin/node"
	node22  = "/opt/node22/bin/node"
	node24  = "/opt/node24/bin/node"
)

// javaVariable sets the variable of docs/clients.md that the agent does not have.
const javaVariable = `export JAVA_TOOL_OPTIONS="$TRUST $DOC_JAVA_TOOL_OPTIONS"`

var cases = []client{
	{"curl", "https and http", "", `curl -sSf $BASE/; curl -sSf $PLAIN/`, says + "\n" + says, ""},
	{"curl", "http in a tunnel", "", `curl -sSf -p $PLAIN/`, says, ""},
	{"wget", "https and http", "", `wget -qO- $BASE/; wget -qO- $PLAIN/`, says + "\n" + says, ""},
	{"git", "clone", "", `git clone -q https://git.allowed.test/demo.git x; git -C x log --format=%H -1 | wc -c`, "41\n", ""},
	{"gh", "api", "", `GH_ENTERPRISE_TOKEN=x GH_HOST=allowed.test:8443 gh api user`, says, ""},
	{"apt", "https", "", aptGet, says, ""},
	{"apt", "http", "", `BASE=$PLAIN; ` + aptGet, says, ""},

	{"npm", "install", "", npmrc + `node ` + modules + `npm/bin/npm-cli.js install --fetch-retries=0 --no-audit --no-fund bottle-demo; ` + require, says, ""},
	{"pnpm", "add", "", npmrc + `node ` + modules + `pnpm/bin/pnpm.cjs add bottle-demo; ` + require, says, ""},
	{"Yarn 1", "add", "", npmrc + yarn1 + require, says, ""},
	{"Yarn 4", "add", "", npmrc + yarn4 + require, says, "YARN_HTTP_PROXY YARN_HTTPS_PROXY"},
	{"Bun", "add", "", npmrc + `echo '{}' >package.json; ` + bun + ` add bottle-demo; ` + bun + ` -p 'require("bottle-demo")'`, says, ""},
	{"Bun", "fetch https and http", "", bun + ` -e 'console.log(await (await fetch(process.env.BASE)).text() + await (await fetch(process.env.PLAIN)).text())'`, says + "\n" + says, ""},
	{"Deno", "fetch https and http", "", deno + ` eval 'const get = async (name) => await (await fetch(Deno.env.get(name))).text(); console.log(await get("BASE") + await get("PLAIN"))'`, says + "\n" + says, ""},
	{"Deno", "npm package", "", `NPM_CONFIG_REGISTRY=$BASE/npm/ ` + deno + ` eval 'import demo from "npm:bottle-demo"; console.log(demo)'`, says, ""},

	{"Node.js 24", "fetch https", "", node24 + ` -e '` + fetch + `'`, says, "NODE_USE_ENV_PROXY"},
	{"Node.js 24", "fetch http", "", node24 + ` -e '` + fetchPlain + `'`, says, ""},
	{"Node.js 24", "https.get and http.get", "", node24 + ` -e '` + get + `'`, says + "\n" + says, ""},
	{"Node.js 22", "fetch https", "", node22 + ` -e '` + fetch + `'`, says, "NODE_USE_ENV_PROXY"},
	{"Node.js 22", "fetch http", "", node22 + ` -e '` + fetchPlain + `'`, says, ""},
	{"Node.js 22", "https.get and http.get", "", node22 + ` -e '` + get + `'`, says + "\n" + says, ""},
	{"Node.js 18 and 20", "18: fetch https", "", node18 + ` -e '` + fetch + `'`, "", ""},
	{"Node.js 18 and 20", "20: fetch https", "", node20 + ` -e '` + fetch + `'`, "", ""},
	{"Node.js 18 and 20", "20: https.get", "", node20 + ` -e '` + get + `'`, "", ""},
	{"undici", "https", "", `NODE_PATH=` + modules + ` ` + node20 + ` -e '` + undici + `({})); ` + fetch + `'`, says, ""},
	{"undici", "http in a tunnel", "", `NODE_PATH=` + modules + ` ` + node20 + ` -e '` + undici + `({})); ` + fetchPlain + `'`, says, ""},
	{"undici", "http", "", `NODE_PATH=` + modules + ` ` + node20 + ` -e '` + undici + `({proxyTunnel: false})); ` + fetchPlain + `'`, says, ""},

	{"pip", "install", "", `pip install -q --break-system-packages --target x --index-url $BASE/pypi/simple bottle-demo; PYTHONPATH=x python3 -c 'import bottle_demo; print(bottle_demo.says)'`, says, ""},
	{"Python urllib", "https and http", "", python + `print(*(u.urlopen(e[n]).read().decode() for n in ("BASE", "PLAIN")), sep="")'`, says + "\n" + says, ""},
	{"Python requests", "https and http", "", python + `import requests; print(*(requests.get(e[n]).text for n in ("BASE", "PLAIN")), sep="")'`, says + "\n" + says, ""},
	{"Python httpx", "https and http", "", python + `import httpx; print(*(httpx.get(e[n], verify="/etc/ssl/certs/ca-certificates.crt").text for n in ("BASE", "PLAIN")), sep="")'`, says + "\n" + says, ""},
	{"Python aiohttp", "https and http", `OPTIONS=trust_env=True`, aiohttp, says + "\n" + says, ""},

	{"cargo", "fetch", "", cargo, says, ""},
	{"go", "mod download", "", goMod, says, ""},
	{"Java", "URLConnection", trust + javaVariable, trustOnly + urlConnection + `java Get.java`, says + "\n" + says, ""},
	{"Java", "HttpClient", trust + javaVariable, trustOnly + httpClient + `java Get.java`, says + "\n" + says, ""},
	{"Maven", "JAVA_TOOL_OPTIONS", trust + javaVariable, `unset MAVEN_OPTS; ` + trustOnly + maven, says, ""},
	{"Maven", "validate", "", trustOnly + maven, says, "MAVEN_OPTS"},
	{"Gradle", "JAVA_TOOL_OPTIONS", trust + javaVariable, `unset GRADLE_OPTS; ` + trustOnly + gradle + ` --no-daemon show`, says, ""},
	{"Gradle", "daemon", "", trustOnly + gradle + ` show; gradle --stop`, says, "GRADLE_OPTS"},

	{"Chromium", "https", "", chromium + ` --ignore-certificate-errors --dump-dom $BASE/page.html`, says, ""},
	{"Chromium", "http", "", chromium + ` --dump-dom $PLAIN/page.html`, says, ""},
	{"Playwright", "page", "", `NODE_PATH=` + modules + ` HOME=$PWD ` + node24 + ` -e '` + playwrightPage + `'`, says, ""},
	{"Playwright", "request", `OPTIONS="proxy: {server: process.env.HTTPS_PROXY},"`, `NODE_PATH=` + modules + ` HOME=$PWD ` + node24 + ` -e '` + playwrightRequest + `'`, says, ""},

	// The sandbox's own addresses, without the proxy.
	{"curl", "own addresses", "", serveOwn + `for host in $OWN; do curl -sSf http://$host:8124/; done`, ownSays, "NO_PROXY no_proxy"},
	{"wget", "own addresses", "", serveOwn + `for host in $OWN; do wget -qO- http://$host:8124/; done`, ownSays, "NO_PROXY no_proxy"},
	{"Node.js 24", "own addresses", "", serveOwn + `for host in $OWN; do PLAIN=http://$host:8124/ ` + node24 + ` -e '` + fetchOwn + `'; done`, ownSays, "NO_PROXY no_proxy"},
	{"Python urllib", "own addresses", "", serveOwn + python + `[print(u.urlopen("http://%s:8124/" % h).read().decode(), end="") for h in e["OWN"].split()]'`, ownSays, "NO_PROXY no_proxy"},
	{"Python requests", "own addresses", "", serveOwn + python + `import requests; [print(requests.get("http://%s:8124/" % h).text, end="") for h in e["OWN"].split()]'`, ownSays, "NO_PROXY no_proxy"},
	{"Python httpx", "own addresses", "", serveOwn + python + `import httpx; [print(httpx.get("http://%s:8124/" % h).text, end="") for h in e["OWN"].split()]'`, ownSays, "NO_PROXY no_proxy"},
}

// Node's packages.
const (
	npmrc   = `export HOME=$PWD PATH=/opt/node24/bin:$PATH; echo "registry=$BASE/npm/" >.npmrc; `
	require = `node -p 'require("bottle-demo")'`
	yarn1   = `echo '{}' >package.json; echo "registry \"$BASE/npm/\"" >.yarnrc; node ` + modules + `yarn/bin/yarn.js add bottle-demo; `
	yarn4   = `echo '{"name": "x"}' >package.json; touch yarn.lock; printf 'npmRegistryServer: "'$BASE'/npm"\nnodeLinker: node-modules\nenableTelemetry: false\nhttpRetry: 0\n' >.yarnrc.yml; node ` +
		modules + `@yarnpkg/cli-dist/bin/yarn.js add bottle-demo; `

	fetch      = `fetch(process.env.BASE).then(r => r.text()).then(console.log)`
	fetchPlain = `fetch(process.env.PLAIN).then(r => r.text()).then(console.log)`
	fetchOwn   = `fetch(process.env.PLAIN).then(r => r.text()).then(text => process.stdout.write(text))`
	get        = `require("https").get(process.env.BASE, r => { r.pipe(process.stdout); r.on("end", () => require("http").get(process.env.PLAIN, r => r.pipe(process.stdout))) })`
	undici     = `const {EnvHttpProxyAgent, setGlobalDispatcher, fetch} = require("undici"); setGlobalDispatcher(new EnvHttpProxyAgent`

	playwrightPage = `const {chromium} = require("playwright-core"); (async () => {
		const browser = await chromium.launch({executablePath: "/usr/bin/chromium", chromiumSandbox: true});
		const page = await browser.newPage({ignoreHTTPSErrors: true});
		await page.goto(process.env.BASE + "/page.html");
		console.log(await page.textContent("p"));
		await browser.close();
	})()`
	playwrightRequest = `const {request} = require("playwright-core"); (async () => {
		const context = await request.newContext({'"$OPTIONS"' ignoreHTTPSErrors: true});
		console.log(await (await context.get(process.env.BASE)).text());
	})()`
	chromium = `chromium --headless --disable-gpu --user-data-dir=$PWD/profile`
)

const (
	python  = `python3 -c 'import os, urllib.request as u; e = os.environ; `
	aiohttp = `cat >client.py <<END
import aiohttp, asyncio, os
async def main():
    async with aiohttp.ClientSession($OPTIONS) as session:
        for name in "BASE", "PLAIN":
            async with session.get(os.environ[name]) as r: print(await r.text(), end="")
asyncio.run(main())
END
python3 client.py`
	cargo = `export CARGO_HOME=$PWD/cargo; mkdir -p src cargo; touch src/lib.rs
printf '[package]\nname = "x"\nversion = "0.1.0"\n[dependencies]\nbottle-demo = "1"\n' >Cargo.toml
printf '[source.crates-io]\nreplace-with = "here"\n[source.here]\nregistry = "sparse+'$BASE'/cargo/"\n' >cargo/config.toml
cargo fetch; cat cargo/registry/src/*/bottle-demo-1.0.0/src/lib.rs`
	goMod = `export GOROOT=/opt/go PATH=/opt/go/bin:$PATH HOME=$PWD GOTOOLCHAIN=local GOPROXY=$BASE/go GONOSUMDB=* GOFLAGS=-modcacherw
go mod download example.com/demo@v1.0.0; cat go/pkg/mod/example.com/demo@v1.0.0/demo.go`
	aptGet = `mkdir -p state/lists/partial cache/archives/partial; touch status; echo "deb [trusted=yes] $BASE/debian ./" >sources.list
options="-o Dir::State=$PWD/state -o Dir::State::status=$PWD/status -o Dir::Cache=$PWD/cache -o Dir::Etc::SourceList=$PWD/sources.list -o Dir::Etc::SourceParts=/dev/null"
apt-get $options -q update; apt-get $options -q download bottle-demo; dpkg-deb -x bottle-demo*.deb x; cat x/usr/share/bottle-demo`
)

// Java needs a trust store for the world's authority.
const (
	trust = `keytool -importcert -noprompt -keystore trust -storepass changeit -alias lab -file $CA 2>/dev/null; ` +
		`TRUST="-Djavax.net.ssl.trustStore=$PWD/trust -Djavax.net.ssl.trustStorePassword=changeit"; `
	// trustOnly is for the control, in which only the proxy settings are missing.
	trustOnly     = `[ -n "$TRUST" ] || { ` + trust + `export JAVA_TOOL_OPTIONS="$TRUST"; }; `
	urlConnection = `cat >Get.java <<'END'
import java.net.*;
class Get { public static void main(String[] args) throws Exception {
  for (String name : new String[]{"BASE", "PLAIN"})
    System.out.print(new String(new URL(System.getenv(name)).openStream().readAllBytes()));
} }
END
`
	httpClient = `cat >Get.java <<'END'
import java.net.*; import java.net.http.*;
class Get { public static void main(String[] args) throws Exception {
  HttpClient client = HttpClient.newHttpClient();
  for (String name : new String[]{"BASE", "PLAIN"})
    System.out.print(client.send(HttpRequest.newBuilder(URI.create(System.getenv(name))).build(), HttpResponse.BodyHandlers.ofString()).body());
} }
END
`
	maven = `cat >pom.xml <<END
<project xmlns="http://maven.apache.org/POM/4.0.0"><modelVersion>4.0.0</modelVersion>
<parent><groupId>test.bottle</groupId><artifactId>bottle-demo</artifactId><version>1.0.0</version><relativePath/></parent>
<artifactId>x</artifactId><packaging>pom</packaging>
<repositories><repository><id>here</id><url>$BASE/maven</url></repository></repositories></project>
END
mvn -B -Dmaven.repo.local=$PWD/m2 validate; cat m2/test/bottle/bottle-demo/1.0.0/*.pom`
	gradle = `cat >build.gradle <<END
repositories { maven { url "$BASE/maven" } }
configurations { x }
dependencies { x "test.bottle:bottle-demo:1.0.0@pom" }
task show { doLast { configurations.x.files.each { println it.text } } }
END
touch settings.gradle; export GRADLE_USER_HOME=$PWD/home; gradle -q`
)

// serveOwn serves a text in the sandbox until the script ends.
const (
	serveOwn = `mkdir own; echo own >own/index.html
python3 -u -m http.server 8124 --bind 0.0.0.0 --directory own >log 2>&1 & server=$!; trap 'kill $server' EXIT
while ! grep -q Serving log; do kill -0 $server; sleep 0.1; done
export OWN="localhost 127.0.0.1 127.0.1.1 0.0.0.0 10.77.0.2 $HOSTNAME"
`
	ownSays = "own\nown\nown\nown\nown\nown"
)

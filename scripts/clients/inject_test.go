package clients

import (
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"strings"
)

// token is a secret that the clients have a placeholder of.
const token = "ghp_" + "Q8tWc2yLr0" + "ZpV5nHs1Xk" + "Ju7DgMb4Ea" + "9fTiC3"

// keyPath answers with the hash of a request's credential.
const keyPath = "/key"

var tokenHash = hashOf(token)

func hashOf(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:])
}

func serveKey(w http.ResponseWriter, r *http.Request) {
	_, credential, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	_, _ = w.Write([]byte(hashOf(credential) + "\n"))
}

const nodeKey = ` -e 'fetch(process.env.BASE + "/key", {headers: {authorization: "Bearer " + process.env.TOKEN}}).then(async (r) => console.log(await r.text()))'`

// javaKey needs no trust store of its own: the bottle's authority is in that of the image.
const javaKey = `cat >Key.java <<'END'
import java.net.*; import java.net.http.*;
class Key { public static void main(String[] args) throws Exception {
  var request = HttpRequest.newBuilder(URI.create(System.getenv("BASE") + "/key")).header("Authorization", "Bearer " + System.getenv("TOKEN")).build();
  System.out.println(HttpClient.newHttpClient().send(request, HttpResponse.BodyHandlers.ofString()).body());
} }
END
java Key.java`

// inserted are requests with the placeholder.
var inserted = []client{
	{"curl", "with a secret", "", `curl -sSf -H "Authorization: Bearer $TOKEN" $BASE/key`, tokenHash, ""},
	{"wget", "with a secret", "", `wget -qO- --header "Authorization: Bearer $TOKEN" $BASE/key`, tokenHash, ""},
	{"Node.js 24", "with a secret", "", node24 + nodeKey, tokenHash, ""},
	{"Node.js 22", "with a secret", "", node22 + nodeKey, tokenHash, ""},
	{"Bun", "with a secret", "", bun + nodeKey, tokenHash, ""},
	{"Java", "with a secret", `export JAVA_TOOL_OPTIONS="$DOC_JAVA_TOOL_OPTIONS"`, javaKey, tokenHash, ""},
	{"Python requests", "with a secret", "", `python3 -c 'import os, requests; print(requests.get(os.environ["BASE"] + "/key", headers={"Authorization": "Bearer " + os.environ["TOKEN"]}).text)'`, tokenHash, ""},
	{"Python httpx", "with a secret", "", `python3 -c 'import os, httpx; print(httpx.get(os.environ["BASE"] + "/key", headers={"Authorization": "Bearer " + os.environ["TOKEN"]}).text)'`, tokenHash, ""},
}

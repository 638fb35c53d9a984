package manifest

import _ "embed"

// Schema is the manifest's JSON Schema (2020-12), for editors. It cannot say
// all that ParseManifest checks: what it leaves out is listed in its test.
//
//go:embed schema/bottle.schema.json
var Schema []byte

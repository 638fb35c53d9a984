package manifest

import _ "embed"

// Schema is the manifest's JSON Schema (2020-12), for editors. It cannot express all that
// Parse checks: the exceptions are listed in its test.
//
//go:embed schema/bottle.schema.json
var Schema []byte

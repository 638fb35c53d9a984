// Command program is the part of bottle that runs inside a sandbox. `make build`
// embeds it in the bottle binary.
package main

import (
	"fmt"
	"os"

	"github.com/bot-bottle/bottle/cmd/bottle/guest"
)

func main() {
	code, ok := guest.Run(os.Args[1:])
	if !ok {
		fmt.Fprintln(os.Stderr, "bottle: this program runs only inside a bottle")
		code = 125
	}
	os.Exit(code)
}

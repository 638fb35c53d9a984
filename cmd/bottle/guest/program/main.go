// Command program is the part of bottle that runs inside a bottle, and nothing
// else of it. `make build` puts it into the program bottle.
package main

import (
	"fmt"
	"os"

	"github.com/bot-bottle/bottle/cmd/bottle/guest"
)

func main() {
	code, ok := guest.Run(os.Args[1:])
	if !ok {
		fmt.Fprintln(os.Stderr, "bottle: this program is for the inside of a bottle")
		code = 125
	}
	os.Exit(code)
}

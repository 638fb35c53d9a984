// Command escape is the prober of the escape suite: it tries, from wherever it
// is run, what a bottle must not let through. The same program is run inside
// bottles, where nothing may succeed, and where a wall was taken away, where the
// same attempts must. It reads attempts as JSON on standard input and writes
// their results.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"
)

// attempt is one thing to try.
type attempt struct {
	Name string   `json:"name"`
	Kind string   `json:"kind"`
	Args []string `json:"args"`
	// Alone: it changes what the others meet, so it is tried after them.
	Alone bool `json:"alone"`
	// Every is how often it is tried in a vigil, in milliseconds.
	Every int `json:"every"`
}

// batch is what one run does.
type batch struct {
	Proxy    string    `json:"proxy"` // host:port
	Attempts []attempt `json:"attempts"`
	// Vigil, if set, has all of them repeated without a pause, and is the file
	// that tells at any time how they fared; see keep.
	Vigil string `json:"vigil"`
}

// result says whether the attempt succeeded as far as the prober can tell; that
// nothing arrived is for the victim to say.
type result struct {
	Name    string `json:"name"`
	Reached bool   `json:"reached"`
	Detail  string `json:"detail"`
	Rounds  int    `json:"rounds"`
	// Gap is the longest time between the beginnings of two attempts, in
	// milliseconds: a window as long was met by one.
	Gap int64 `json:"gap"`
}

// atOnce bounds the attempts under way.
const atOnce = 8

// limit bounds the time of one attempt.
var limit = 1500 * time.Millisecond

func main() {
	if len(os.Args) > 1 {
		os.Exit(load(os.Args[1:], os.Stdout))
	}
	if err := run(os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "escape:", err)
		os.Exit(1)
	}
}

func run(in io.Reader, out io.Writer) error {
	var b batch
	if err := json.NewDecoder(in).Decode(&b); err != nil {
		return fmt.Errorf("read the attempts: %w", err)
	}
	if b.Vigil != "" {
		return b.begin()
	}
	return json.NewEncoder(out).Encode(b.round())
}

// round tries everything once.
func (b batch) round() []result {
	results := make([]result, len(b.Attempts))
	var wg sync.WaitGroup
	slots := make(chan struct{}, atOnce)
	for i, a := range b.Attempts {
		if a.Alone {
			continue
		}
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			results[i] = b.try(a)
		})
	}
	wg.Wait()
	for i, a := range b.Attempts {
		if a.Alone {
			results[i] = b.try(a)
		}
	}
	return results
}

func (b batch) try(a attempt) result {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	fn, ok := kinds[a.Kind]
	if !ok {
		return result{Name: a.Name, Reached: true, Detail: "no such kind: " + a.Kind}
	}
	detail, err := fn(ctx, b.Proxy, a.Args)
	r := result{Name: a.Name, Reached: err == nil, Detail: detail, Rounds: 1}
	if err != nil {
		r.Detail = strings.TrimSpace(detail + " " + err.Error())
	}
	return r
}

// kinds are the ways of trying. An error is failure to get through.
var kinds = map[string]func(ctx context.Context, proxy string, args []string) (string, error){
	"tcp": tryTCP, "udp": tryUDP, "icmp": tryICMP, "spoof": trySpoof, "frame": tryFrame,
	"unix": tryUnix, "raw": tryRaw, "tls": tryTLS, "follow": tryFollow, "flip": tryFlip,
	"route": tryRoute, "address": tryAddress, "lookup": tryLookup,
	"open": tryOpen, "write": tryWrite, "mknod": tryMknod, "mount": tryMount, "setns": trySetns, "signal": trySignal,
}

// Command escape is the prober of the escape suite (escape_*_test.go). It
// attempts what a bottle must prevent, from wherever it runs. Inside a bottle
// every attempt must fail. In the controls, where the protection was removed, the
// same attempts must succeed.
//
// Without arguments it reads a batch of attempts as JSON from standard input and
// writes their results. With arguments it runs one of the commands of command.go.
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

// attempt is a single attempt.
type attempt struct {
	Name string   `json:"name"`
	Kind string   `json:"kind"` // a key of kinds
	Args []string `json:"args"`
	// Exclusive attempts change routes or addresses that others use, so they run
	// one by one after all others.
	Exclusive bool `json:"exclusive"`
	// Interval between repetitions, in milliseconds; see batch.ResultsFile.
	Interval int `json:"interval"`
}

// batch is the prober's input.
type batch struct {
	Proxy    string    `json:"proxy"` // host:port
	Attempts []attempt `json:"attempts"`
	// ResultsFile, if set, makes a background process repeat the attempts until
	// the "stop" command and keep their results in this file; see repeat.go.
	ResultsFile string `json:"results_file"`
}

// result is the outcome of an attempt as far as the prober can know it. Only the
// victim knows whether a packet arrived.
type result struct {
	Name    string `json:"name"`
	Reached bool   `json:"reached"`
	Detail  string `json:"detail"`
	Rounds  int    `json:"rounds"`
	// Gap is the longest time between the starts of two repetitions, in
	// milliseconds. Any longer gap in the protection contains an attempt.
	Gap int64 `json:"gap"`
}

// maxConcurrent bounds the number of concurrent attempts.
const maxConcurrent = 8

// timeout bounds an attempt.
var timeout = 1500 * time.Millisecond

func main() {
	if len(os.Args) > 1 {
		os.Exit(command(os.Args[1:], os.Stdout, os.Stderr))
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
	if b.ResultsFile != "" {
		return b.startRepeating()
	}
	return json.NewEncoder(out).Encode(b.tryAll())
}

// tryAll makes every attempt once.
func (b batch) tryAll() []result {
	results := make([]result, len(b.Attempts))
	var wg sync.WaitGroup
	slots := make(chan struct{}, maxConcurrent)
	for i, a := range b.Attempts {
		if a.Exclusive {
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
		if a.Exclusive {
			results[i] = b.try(a)
		}
	}
	return results
}

func (b batch) try(a attempt) result {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	fn, ok := kinds[a.Kind]
	if !ok {
		// Counted as reached, so that a mistake in the table fails the suite.
		return result{Name: a.Name, Reached: true, Detail: "unknown kind " + a.Kind}
	}
	detail, err := fn(ctx, b.Proxy, a.Args)
	r := result{Name: a.Name, Reached: err == nil, Detail: detail, Rounds: 1}
	if err != nil {
		r.Detail = strings.TrimSpace(detail + " " + err.Error())
	}
	return r
}

// kinds are the kinds of attempts. An attempt that returns an error has failed,
// as it should inside a bottle.
var kinds = map[string]func(ctx context.Context, proxy string, args []string) (string, error){
	"tcp": tryTCP, "udp": tryUDP, "icmp": tryICMP, "spoof": trySpoof, "frame": tryFrame,
	"unix": tryUnix, "raw": tryRaw, "tls": tryTLS, "follow": tryFollow, "flip": tryFlip,
	"route": tryRoute, "address": tryAddress, "lookup": tryLookup,
	"open": tryOpen, "write": tryWrite, "mknod": tryMknod, "mount": tryMount, "setns": trySetns, "signal": trySignal,
}

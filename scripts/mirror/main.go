// Command mirror lets image builds on the test host download packages, and
// nothing else. It listens on an address of the lab's outside world and forwards
// requests to the Debian mirrors, the npm registry and the Go module proxy that the
// machine is configured to use. The builds verify the downloads: apt by signatures, npm
// packages by the hash in the Dockerfile, Go modules by their go.sum.
//
//	mirror --netns FILE --listen ADDRESS --sources FILE --npm URL --go GOPROXY --out DIR
//
// FILE is an apt sources.list. The mirror writes a sources.list, an npmrc and a goproxy
// with its own addresses to DIR and, once it is ready, the file `addresses`: the random
// word that is part of each of its addresses, then the addresses of the Debian
// mirrors, one per line.
package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "mirror:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	flags := pflag.NewFlagSet("mirror", pflag.ContinueOnError)
	netns := flags.String("netns", "", "network namespace to listen in (default: the current one)")
	listen := flags.String("listen", "127.0.0.1:0", "address and port to listen on; port 0: any")
	sources := flags.String("sources", "", "apt's sources, one `deb URI SUITE COMPONENT` per line")
	npm := flags.String("npm", "", "URL of the npm registry")
	goproxy := flags.String("go", "", "value of GOPROXY, whose first URL is served")
	out := flags.String("out", "", "directory for the files with the mirror's addresses")
	if err := flags.Parse(args); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT)
	defer stop()
	l, err := listenIn(*netns, *listen)
	if err != nil {
		return fmt.Errorf("listen in %s: %w", *netns, err)
	}
	m := newMirror(l.Addr().String())
	list, err := os.ReadFile(*sources)
	if err != nil {
		return err
	}
	if list, err = m.rewrite(list); err != nil {
		return fmt.Errorf("%s: %w", *sources, err)
	}
	registry, err := m.add(*npm, true)
	if err != nil {
		return err
	}
	modules, err := m.add(firstURL(*goproxy), false)
	if err != nil {
		return fmt.Errorf("GOPROXY: %w", err)
	}
	for name, data := range map[string][]byte{"sources.list": list, "npmrc": []byte("registry=" + registry + "\n"), "goproxy": []byte(modules)} {
		if err := os.WriteFile(filepath.Join(*out, name), data, 0o600); err != nil {
			return err
		}
	}
	server := &http.Server{Handler: m}
	defer context.AfterFunc(ctx, func() { _ = server.Close() })()
	if err := m.announce(*out); err != nil {
		return err
	}
	if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// firstURL returns the first URL of a list as in GOPROXY ("go help goproxy").
func firstURL(list string) string {
	for _, entry := range strings.FieldsFunc(list, func(r rune) bool { return r == ',' || r == '|' }) {
		if strings.Contains(entry, "://") {
			return entry
		}
	}
	return ""
}

// listenIn listens on the address in the namespace. Outgoing connections still use
// the process's own namespace.
func listenIn(netns, address string) (net.Listener, error) {
	if netns == "" {
		return net.Listen("tcp", address)
	}
	type result struct {
		l   net.Listener
		err error
	}
	done := make(chan result)
	go func() {
		// Never unlocked, so that the thread ends with this goroutine.
		runtime.LockOSThread()
		l, err := func() (net.Listener, error) {
			f, err := os.Open(netns)
			if err != nil {
				return nil, err
			}
			defer func() { _ = f.Close() }()
			if err := unix.Setns(int(f.Fd()), unix.CLONE_NEWNET); err != nil {
				return nil, err
			}
			return net.Listen("tcp", address)
		}()
		done <- result{l, err}
	}()
	r := <-done
	return r.l, r.err
}

// mirror serves each upstream under its own path, /WORD/N/.
type mirror struct {
	word, base string
	routes     map[string]http.Handler
	addresses  map[string]string // address on this mirror, by upstream
	debian     []string
}

func newMirror(addr string) *mirror {
	word := "mirror-" + strings.ToLower(rand.Text())
	return &mirror{word: word, base: "http://" + addr + "/" + word + "/", routes: map[string]http.Handler{}, addresses: map[string]string{}}
}

// add adds a route to an upstream and returns the address of the route.
func (m *mirror) add(upstream string, npm bool) (string, error) {
	upstream = strings.TrimSuffix(upstream, "/") + "/"
	if address, ok := m.addresses[upstream]; ok {
		return address, nil
	}
	u, err := url.Parse(upstream)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return "", fmt.Errorf("invalid mirror address %q", upstream)
	}
	name := strconv.Itoa(len(m.routes))
	address := m.base + name + "/"
	p := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
		r.SetURL(u)
		r.Out.Header.Del("Accept-Encoding") // the transport sets it and decodes the response
	}}
	if npm {
		p.ModifyResponse = func(r *http.Response) error { return replaceAddress(r, upstream, address) }
	}
	m.routes[name] = http.StripPrefix("/"+m.word+"/"+name, p)
	m.addresses[upstream] = address
	return address, nil
}

// announce writes the file `addresses` atomically.
func (m *mirror) announce(dir string) error {
	list := append([]string{m.word}, m.debian...)
	file := filepath.Join(dir, "addresses")
	if err := os.WriteFile(file+".new", []byte(strings.Join(list, "\n")+"\n"), 0o600); err != nil {
		return err
	}
	return os.Rename(file+".new", file)
}

// maxMetadata bounds the npm registry's metadata of a package, in bytes.
const maxMetadata = 64 << 20

// replaceAddress replaces the registry's own address in its metadata, so that npm
// downloads packages through the mirror.
func replaceAddress(r *http.Response, upstream, address string) error {
	if !strings.Contains(r.Header.Get("Content-Type"), "json") {
		return nil
	}
	data, err := io.ReadAll(io.LimitReader(r.Body, maxMetadata))
	if err != nil {
		return err
	}
	data = bytes.ReplaceAll(data, []byte(upstream), []byte(address))
	r.Body = io.NopCloser(bytes.NewReader(data))
	r.ContentLength = int64(len(data))
	r.Header.Set("Content-Length", strconv.Itoa(len(data)))
	return nil
}

// rewrite returns apt's sources with addresses on this mirror.
func (m *mirror) rewrite(list []byte) ([]byte, error) {
	var out bytes.Buffer
	lines := bufio.NewScanner(bytes.NewReader(list))
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) == 0 || strings.HasPrefix(fields[0], "#") {
			continue
		}
		if len(fields) < 4 || fields[0] != "deb" {
			return nil, fmt.Errorf("invalid line %q", lines.Text())
		}
		address, err := m.add(fields[1], false)
		if err != nil {
			return nil, err
		}
		m.debian = append(m.debian, fields[1])
		fields[1] = address
		fmt.Fprintln(&out, strings.Join(fields, " "))
	}
	if out.Len() == 0 {
		return nil, errors.New("no sources")
	}
	return out.Bytes(), lines.Err()
}

func (m *mirror) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	rest, ok := strings.CutPrefix(r.URL.Path, "/"+m.word+"/")
	name, _, _ := strings.Cut(rest, "/")
	route := m.routes[name]
	if !ok || route == nil || r.Method != http.MethodGet && r.Method != http.MethodHead {
		http.NotFound(w, r)
		return
	}
	route.ServeHTTP(w, r)
}

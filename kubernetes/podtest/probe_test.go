package podtest

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// probeTimeout bounds one attempt. What is reached answers within milliseconds.
const probeTimeout = 3 * time.Second

// probe is the program of the agent's image: it prints what it finds, or sleeps as the
// program of the sandbox.
func probe(args []string) {
	if len(args) == 1 && args[0] == "sleep" {
		time.Sleep(time.Hour)
		return
	}
	var r report
	r.UID = os.Getuid()
	r.Reached, r.Bound = dialAll(args, false), dialAll(args, true)
	r.Allowed, r.Refused = status("http://"+allowedIP+"/"), status("http://"+nodeIP+":10250/")
	r.Token, r.Mode, r.Home = os.Getenv("TOKEN"), os.Getenv("MODE"), os.Getenv("HOME")
	r.Prompt, r.Git = text(os.Getenv("BOTTLE_PROMPT_FILE")), text(r.Home+"/.gitconfig")
	r.Claude = json.RawMessage(text(r.Home + "/.claude.json"))
	if err := json.NewEncoder(os.Stdout).Encode(r); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// dialAll returns those of the addresses that answer, in their order.
func dialAll(addrs []string, bind bool) []string {
	open := make([]bool, len(addrs))
	var wg sync.WaitGroup
	for i, addr := range addrs {
		wg.Go(func() {
			d := net.Dialer{Timeout: probeTimeout}
			if bind {
				d.Control = bindToEth0
			}
			conn, err := d.Dial("tcp", addr)
			if err == nil {
				_ = conn.Close()
			}
			open[i] = err == nil
		})
	}
	wg.Wait()
	out := []string{}
	for i, addr := range addrs {
		if open[i] {
			out = append(out, addr)
		}
	}
	return out
}

func bindToEth0(_, _ string, c syscall.RawConn) (err error) {
	cerr := c.Control(func(fd uintptr) {
		err = unix.SetsockoptString(int(fd), unix.SOL_SOCKET, unix.SO_BINDTODEVICE, "eth0")
	})
	if err == nil {
		err = cerr
	}
	return err
}

// status returns the status of a request through the proxy of the environment; 0: none.
func status(url string) int {
	client := &http.Client{Timeout: probeTimeout}
	res, err := client.Get(url)
	if err != nil {
		return 0
	}
	_ = res.Body.Close()
	return res.StatusCode
}

func text(path string) string {
	data, _ := os.ReadFile(path) // a missing file is reported as an empty one
	return string(data)
}

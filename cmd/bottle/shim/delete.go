package shim

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"flag"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/bot-bottle/bottle/internal/runscstate"
)

// Containerd starts the shim again after its task was deleted, and waits for it, so that whatever a
// killed shim has left is removed. gVisor's shim starts runsc for that, which together takes a
// third of a removal's time. After a deletion there is nothing to do: runsc has no record of the
// sandbox any more.

// noneLeft reports whether a call is one that removes what a shim has left, while nothing is left
// but the mounts of the root file system. containerd runs the shim in the directory of the bundle.
func noneLeft(args []string) (rootfs string, ok bool) {
	var namespace, id string
	flags := flag.NewFlagSet("shim", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	flags.StringVar(&namespace, "namespace", "", "")
	flags.StringVar(&id, "id", "", "")
	for _, name := range []string{"address", "publish-binary", "bundle", "socket", "debug-socket"} {
		flags.String(name, "", "")
	}
	flags.Bool("debug", false, "")
	if flags.Parse(args) != nil || flags.NArg() != 1 || flags.Arg(0) != "delete" || namespace == "" || id == "" {
		return "", false
	}
	// gVisor pkg/shim/v1/runsc, State.
	var state struct {
		Rootfs  string
		Options struct{ Root string }
	}
	data, err := os.ReadFile("state.json")
	if err != nil || json.Unmarshal(data, &state) != nil || state.Rootfs == "" || state.Options.Root == "" {
		return "", false
	}
	// gVisor's default is used without an option, and bottle sets one.
	_, err = os.Lstat(runscstate.Path(filepath.Join(state.Options.Root, namespace), id))
	return state.Rootfs, errors.Is(err, fs.ErrNotExist)
}

// reportDeleted does what gVisor's shim does if nothing is left: it unmounts the root file system
// and prints a response that says that the task was killed.
func reportDeleted(rootfs string, out io.Writer) error {
	for {
		err := syscall.Unmount(rootfs, 0)
		if errors.Is(err, syscall.EINVAL) || errors.Is(err, fs.ErrNotExist) {
			break // not mounted any more
		}
		if err != nil {
			return err
		}
	}
	_, err := out.Write(deleteResponse(time.Now()))
	return err
}

// deleteResponse encodes the response (containerd api/runtime/task/v3, DeleteResponse): 2 is the
// exit code, and 3 the time of the exit with its seconds as 1 and nanoseconds as 2. Package
// protobuf would take longer to initialise than the rest.
func deleteResponse(exited time.Time) []byte {
	const varint, message = 0, 2
	field := func(b []byte, number, wire int) []byte { return append(b, byte(number<<3|wire)) }
	at := binary.AppendUvarint(field(nil, 1, varint), uint64(exited.Unix()))
	at = binary.AppendUvarint(field(at, 2, varint), uint64(exited.Nanosecond()))
	b := binary.AppendUvarint(field(nil, 2, varint), 128+uint64(syscall.SIGKILL))
	b = binary.AppendUvarint(field(b, 3, message), uint64(len(at)))
	return append(b, at...)
}

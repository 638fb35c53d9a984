package guest

import (
	"bufio"
	"errors"
	"io"
	"net"
	"path/filepath"

	proto "github.com/bot-bottle/bottle/internal/sessionproto"
)

// connect serves the clients that bottle announces on PID 1's standard input, until that
// ends: in a bottle of another version it has no content. Clients wait on sockets in a
// directory.
func (h *holder) connect(announced io.Reader, dir string) {
	lines := bufio.NewReaderSize(announced, 64)
	for {
		line, err := lines.ReadSlice('\n')
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			return
		}
		id, ok := proto.ID(line)
		if !ok {
			continue
		}
		go func() {
			conn, err := net.Dial("unix", filepath.Join(dir, proto.ClientSocket(id)))
			if err == nil { // otherwise bottle has given up
				h.handle(conn)
			}
		}()
	}
}

package audit

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	journalSocket = "/run/systemd/journal/socket" // systemd-journald.service(8)
	syslogSocket  = "/dev/log"                    // syslog(3)

	tag = "bottle"
)

// sendTimeout bounds a write to a daemon that does not read.
const sendTimeout = 5 * time.Second

// connect connects to a datagram socket.
func connect(path string) (*net.UnixConn, error) {
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return nil, err
	}
	if err := c.SetWriteDeadline(time.Now().Add(sendTimeout)); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

// journal speaks journald's native protocol (systemd.io/JOURNAL_NATIVE_PROTOCOL).
type journal struct{ path string }

func (j journal) write(r *record, _ []byte) error {
	var b bytes.Buffer
	appendField(&b, "MESSAGE", r.message())
	appendField(&b, "PRIORITY", strconv.Itoa(r.severity()))
	appendField(&b, "SYSLOG_FACILITY", strconv.Itoa(facility))
	appendField(&b, "SYSLOG_IDENTIFIER", tag)
	for _, f := range fields(r) {
		for _, text := range f.texts() {
			appendField(&b, "BOTTLE_"+strings.ToUpper(f.name), text)
		}
	}
	return j.send(b.Bytes())
}

// appendField appends a field in the form that permits every value.
func appendField(b *bytes.Buffer, name, value string) {
	b.WriteString(name + "\n")
	b.Write(binary.LittleEndian.AppendUint64(nil, uint64(len(value))))
	b.WriteString(value + "\n")
}

// send sends an entry. What is too large for a datagram is sent as a sealed file.
func (j journal) send(entry []byte) error {
	c, err := connect(j.path)
	if err != nil {
		return err
	}
	_, err = c.Write(entry)
	if errors.Is(err, unix.EMSGSIZE) || errors.Is(err, unix.ENOBUFS) {
		err = sendFile(c, entry)
	}
	return errors.Join(err, c.Close())
}

func sendFile(c *net.UnixConn, entry []byte) error {
	fd, err := unix.MemfdCreate("bottle-audit", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return fmt.Errorf("create memory file: %w", err)
	}
	f := os.NewFile(uintptr(fd), "bottle-audit")
	_, err = f.Write(entry)
	if err == nil {
		// journald accepts no file that could change while it reads it.
		_, err = unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_WRITE|unix.F_SEAL_SEAL)
	}
	if err == nil {
		err = sendDescriptor(c, fd)
	}
	return errors.Join(err, f.Close())
}

// sendDescriptor sends an empty datagram with a descriptor. WriteMsgUnix refuses
// connected sockets.
func sendDescriptor(c *net.UnixConn, fd int) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var sent error
	err = raw.Write(func(socket uintptr) bool {
		sent = unix.Sendmsg(int(socket), nil, unix.UnixRights(fd), nil, unix.MSG_NOSIGNAL)
		return !errors.Is(sent, unix.EAGAIN)
	})
	if err == nil && sent != nil {
		err = fmt.Errorf("send memory file: %w", sent)
	}
	return err
}

// syslog sends messages of RFC 5424 to the local syslog daemon.
type syslog struct{ path, host string }

func (s syslog) write(r *record, line []byte) error {
	c, err := connect(s.path)
	if err != nil {
		return err
	}
	// Structured data need a registered number (section 7.2.2): the message is the JSON.
	_, err = fmt.Fprintf(c, "<%d>1 %s %s %s %d %s - %s", facility*8+r.severity(), r.Time, s.host, tag, r.PID, r.Kind, line)
	return errors.Join(err, c.Close())
}

// hostname returns the host's name in the form of RFC 5424, section 6.2.4.
func hostname() string {
	const maxHost = 255
	name, err := os.Hostname()
	if err != nil || name == "" || len(name) > maxHost || strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return "-"
	}
	return name
}

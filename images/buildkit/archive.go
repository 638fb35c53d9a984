package buildkit

import (
	"archive/tar"
	"bytes"
)

// ArchiveHeader is the number of bytes that IsArchive needs.
const ArchiveHeader = 512

// compressed are the magic numbers of the formats that BuildKit can unpack.
var compressed = [][]byte{
	{0x1f, 0x8b, 0x08},               // gzip, RFC 1952
	{'B', 'Z', 'h'},                  // bzip2
	{0xfd, '7', 'z', 'X', 'Z', 0x00}, // xz
}

// IsArchive reports whether a build context, of which header is the beginning, is a tar
// archive, possibly compressed. Otherwise it may be a Dockerfile.
func IsArchive(header []byte) bool {
	for _, magic := range compressed {
		if bytes.HasPrefix(header, magic) {
			return true
		}
	}
	_, err := tar.NewReader(bytes.NewReader(header)).Next()
	return err == nil
}

package vmlink

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"golang.org/x/sys/unix"

	"github.com/slash32/slash32/pkg/responder"
)

const (
	bindingFile = "binding.json"
	// maxBinding bounds what is read of a binding, in bytes.
	maxBinding = 1 << 20
)

// binding reads the VM's binding and the hash of the file.
func (d *directory) binding() (responder.Binding, string, error) {
	b, hash, err := d.readBinding()
	if err != nil {
		return responder.Binding{}, "", fmt.Errorf("read %s/%s: %w", d.path, bindingFile, err)
	}
	return b, hash, nil
}

func (d *directory) readBinding() (b responder.Binding, hash string, err error) {
	text, err := d.read(bindingFile)
	if err != nil {
		return b, "", err
	}
	if b, err = parseBinding(text); err != nil {
		return b, "", err
	}
	sum := sha256.Sum256(text)
	return b, hex.EncodeToString(sum[:]), nil
}

func (d *directory) read(name string) ([]byte, error) {
	fd, err := unix.Openat(d.fd, name, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG || st.Size > maxBinding {
		return nil, fmt.Errorf("not a plain file of at most %d bytes", maxBinding)
	}
	text := make([]byte, st.Size)
	n := 0
	for n < len(text) {
		m, err := unix.Read(fd, text[n:])
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if m == 0 {
			return nil, io.ErrUnexpectedEOF
		}
		n += m
	}
	return text, nil
}

// parseBinding is strict: a field that this build does not know would be an
// answer that the guest does not get.
func parseBinding(text []byte) (responder.Binding, error) {
	var b responder.Binding
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&b); err != nil {
		return responder.Binding{}, err
	}
	if b.Version != responder.BindingVersion {
		return responder.Binding{}, fmt.Errorf("version %d, this build knows %d", b.Version, responder.BindingVersion)
	}
	return b, nil
}

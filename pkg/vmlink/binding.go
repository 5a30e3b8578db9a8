package vmlink

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/slash32/slash32/pkg/responder"
)

const (
	bindingFile = "binding.json"
	// maxBinding bounds what is read of a binding, in bytes.
	maxBinding = 1 << 20
)

// directory is the VM's directory. Files are read relative to it, so that they
// can be reached after the change of user whatever lies above.
type directory struct {
	path string
	fd   int
	text []byte // of the file that was read last; the memory is used again
}

func openDirectory(path string) (*directory, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open the VM's directory %s: %w", path, err)
	}
	return &directory{path: path, fd: fd}, nil
}

func (d *directory) close() { _ = unix.Close(d.fd) }

// lockPatience is how long the predecessor may take to die.
const lockPatience = 2 * time.Second

// lock makes sure that the VM has one responder: two would both answer. The
// kernel releases it when the process ends, however it ends.
func (d *directory) lock(ctx context.Context) error {
	if unix.Flock(d.fd, unix.LOCK_EX|unix.LOCK_NB) == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, lockPatience)
	defer cancel()
	for {
		err := unix.Flock(d.fd, unix.LOCK_EX|unix.LOCK_NB)
		if err == nil || (!errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR)) {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("another responder serves %s", d.path)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// binding reads the VM's binding. The text is good until the next call.
func (d *directory) binding() ([]byte, error) {
	if err := d.read(bindingFile); err != nil {
		return nil, fmt.Errorf("read %s/%s: %w", d.path, bindingFile, err)
	}
	return d.text, nil
}

func (d *directory) read(name string) error {
	fd, err := unix.Openat(d.fd, name, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG || st.Size > maxBinding {
		return fmt.Errorf("not a plain file of at most %d bytes", maxBinding)
	}
	text := slices.Grow(d.text[:0], int(st.Size))[:st.Size]
	n := 0
	for n < len(text) {
		m, err := unix.Read(fd, text[n:])
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return err
		}
		if m == 0 {
			return io.ErrUnexpectedEOF
		}
		n += m
	}
	d.text = text
	return nil
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
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return responder.Binding{}, errors.New("something follows the binding")
	}
	if b.Version != responder.BindingVersion {
		return responder.Binding{}, fmt.Errorf("version %d, this build knows %d", b.Version, responder.BindingVersion)
	}
	return b, nil
}

// appendFailure appends the answer to a request that could not be carried out.
func appendFailure(b []byte, err error) []byte {
	text, jerr := json.Marshal(struct {
		Error string `json:"error"`
	}{err.Error()})
	if jerr != nil {
		return append(b, `{"error":"cannot encode the error"}`...)
	}
	return append(b, text...)
}

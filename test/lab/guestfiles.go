package lab

import (
	"fmt"
	"os"
	"path/filepath"
)

// GuestFiles writes below root what a guest of Domain's XML needs on its host,
// for hosts that are not labs of this package.
func GuestFiles(root string) error {
	image, err := initramfs()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Join(root, labDir, "console"), 0o755); err != nil {
		return fmt.Errorf("write the guests' files: %w", err)
	}
	if err := os.WriteFile(filepath.Join(root, initramfsPath), image, 0o644); err != nil {
		return fmt.Errorf("write the guests' files: %w", err)
	}
	return nil
}

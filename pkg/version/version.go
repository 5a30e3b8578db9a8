// Package version says what build this is.
package version

// Version is set by the linker (-X) to the release; "dev" otherwise.
var Version = "dev"

//go:build !old_grpc

package main

import (
	"encoding/hex"
	"regexp"
	"strings"
	"unicode/utf8"
)

// authz/identity.py has the same rules, and says why they are enough. tests/authz/requests.toml has the cases.
var (
	idPattern  = regexp.MustCompile(`^[A-Za-z0-9._~-]{1,255}$`)
	visible    = regexp.MustCompile(`^[!-~]*$`)
	escape     = regexp.MustCompile(`%[0-9A-Fa-f]{2}`)
	dotSegment = regexp.MustCompile(`(^|[/\\])\.{1,2}([/\\;?#\x00- ]|$)`)
	slashes    = regexp.MustCompile(`(([;\x00- ][^/\\]*)?[/\\])+`)
)

func nameable(id string) bool { return id != "." && id != ".." && idPattern.MatchString(id) }

// identify returns the id of the endpoint that a request is for, or false if it names none or can be read in two ways.
func identify(path string, named []string, prefix string) (string, bool) {
	id, clear := "", true
	if prefix != "" {
		id, clear = fromPath(path, prefix)
	}
	for _, each := range named {
		clear = clear && len(named) == 1 && nameable(each) && (id == "" || id == each)
		id = each
	}
	return id, clear && id != ""
}

// fromPath returns the id in the path, "" if it names none, or false if it can be read in two ways.
func fromPath(path, prefix string) (string, bool) {
	if path == "" || path == "*" { // CONNECT and OPTIONS
		return "", true
	}
	if path[0] != '/' || strings.Contains(path, "#") || !visible.MatchString(path) {
		return "", false
	}
	literal := strings.SplitN(path, "?", 2)[0]
	decoded, ok := decode(literal)
	if !ok || dotSegment.MatchString(decoded) || len(slashes.FindString(decoded)) > 1 {
		return "", false
	}
	if strings.HasPrefix(literal, prefix) {
		segment := strings.SplitN(literal[len(prefix):], "/", 2)[0]
		return segment, literal == prefix || nameable(segment)
	}
	lenient := strings.ToLower(slashes.ReplaceAllString(decoded, "/"))
	return "", !strings.HasPrefix(lenient, strings.ToLower(prefix))
}

// decode decodes percent escapes repeatedly. It returns false if the result is not UTF-8 or has too many layers.
func decode(literal string) (string, bool) {
	broken := strings.Contains(escape.ReplaceAllString(literal, ""), "%")
	for range 4 {
		further := escape.ReplaceAllStringFunc(literal, func(s string) string {
			decoded, _ := hex.DecodeString(s[1:])
			return string(decoded)
		})
		if further == literal {
			return literal, !broken && utf8.ValidString(literal)
		}
		literal = further
	}
	return "", false
}

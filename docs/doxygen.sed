# What Doxygen takes for documentation is a comment that begins with three slashes or two stars: makes the headers' comments such.
/^\/[*\/] -+ Below: how it is done/,$ {
  s,^.*how it is done.*$,/** @cond */,
  $ s,$,/** @endcond */,
  b
}
1 s,^/[/*] ?,&@file\n,
s,^( *)//( |$),\1///\2,
s,^( *)/\* ,\1/** ,
s,([^ ].*[;{(\,]) +// ,\1 ///< ,
s,([^ ].*[;{(\,]) +/\* ,\1 /**< ,

-- ARGV: time, result_ttl, then per result: id, attempt, outcome, content type or reason, body, when it
-- was finished. Answers `stored`, `duplicate` or `stale` for each.
local told, news = {}, {}
for nth = 3, #ARGV, 6 do
  local id, attempt, outcome, what, body, finished = unpack(ARGV, nth, nth + 5)
  local fields = { 'finished-at', finished, 'error', what }
  if outcome == 'completed' then fields = { 'finished-at', finished, 'content-type', what, 'body', body } end
  local became = answer(id, tonumber(attempt), outcome, tonumber(ARGV[2]), fields)
  told[#told + 1] = became
  if became == 'stored' then news[#news + 1] = id end
end
tell_answers(news)
return told
